"""Which tokens a label of any words may take, and how it is parted from the next object.

Knows the bytes of a vocabulary. Made once for a tokenizer, for a real one has 257,152 tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from paligemma_edge.runtime.text.tokenizer import PromptEncoder

SEPARATOR = " ; "
_RESERVED = b";<>\r\n"  # what ends a label, or a line


@dataclass(frozen=True, eq=False)
class FreeText:
    """Flags [image_id] of the tokens that may follow a box, other words, and a blank.

    The end may follow all of them. `separators` gives, for the token that begins a separator,
    the ones that complete it. `blank` flags the tokens that end with a blank.
    """

    after_box: NDArray[np.bool_]
    after_words: NDArray[np.bool_]
    after_blank: NDArray[np.bool_]
    blank: NDArray[np.bool_]
    separators: Mapping[int, tuple[int, ...]]

    @classmethod
    def of(cls, encoder: PromptEncoder) -> Self:
        """The rules of a tokenizer."""
        words = np.array([_is_words(text) for text in encoder.vocabulary])
        blank = np.array([text.endswith(b" ") for text in encoder.vocabulary])
        leading = np.array([text.startswith(b" ") for text in encoder.vocabulary])
        whole = encoder.continuation(SEPARATOR)
        bare = encoder.continuation(SEPARATOR.lstrip())  # where a token has brought the blank
        ways = [way for way in (whole, bare) if b";" in encoder.vocabulary[way[0]]]
        ends = [encoder.config.eos_id, *(way[0] for way in ways if way is whole)]
        return cls(
            after_box=_with(words & leading, ends),
            after_words=_with(words, ends),
            after_blank=_with(words, [*ends, bare[0]]),
            blank=blank,
            separators={way[0]: way[1:] for way in ways},
        )

    def after(self, token: int) -> NDArray[np.bool_]:
        """Flags of what may follow a token of a label."""
        return self.after_blank if self.blank[token] else self.after_words


def _is_words(text: bytes) -> bool:
    return bool(text) and not any(sign in text for sign in _RESERVED)


def _with(flags: NDArray[np.bool_], tokens: list[int]) -> NDArray[np.bool_]:
    flags = flags.copy()
    flags[tokens] = True
    return flags
