"""Which tokens a label of any words may have, and how it is separated from the next object.

Knows the bytes of a vocabulary. Computed once for a tokenizer: a real one has 257,152 tokens.
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
class FreeLabels:
    """Flags [image_id] of the tokens that may follow a box, a word, and a blank.

    The end may follow each of them. `separators` maps the first token of a separator to its other
    tokens. `blank` flags the tokens that end with a blank.
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
        bare = encoder.continuation(SEPARATOR.lstrip())  # after a token that ends with a blank
        separators = [one for one in (whole, bare) if b";" in encoder.vocabulary[one[0]]]
        ends = [encoder.config.eos_id, *(one[0] for one in separators if one is whole)]
        return cls(
            after_box=_with(words & leading, ends),
            after_words=_with(words, ends),
            after_blank=_with(words, [*ends, bare[0]]),
            blank=blank,
            separators={one[0]: one[1:] for one in separators},
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
