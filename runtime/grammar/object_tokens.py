"""Which tokens may come where in an answer of objects whose labels are the model's own.

Knows the bytes of a vocabulary. Computed once for a tokenizer: a real one has 257,152 tokens.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from paligemma_edge.runtime.contract import LOC_COUNT, SEG_COUNT
from paligemma_edge.runtime.text.tokenizer import PromptEncoder

Flags = NDArray[np.bool_]  # [image_id], one for each answer token
_WORDS = re.compile(r"[^;<>]+")
_BLANK = re.compile(r"\s+")
_SEPARATOR = re.compile(r"[^;<>]*;\s*")  # it may take the end of a label with it


@dataclass(frozen=True, eq=False)
class ObjectTokens:
    """Flags of tokens by what they are in an answer, and of those that may come at each place.

    Args:
        blank: white space alone.
        separator: ends with the ";" that ends an object.
        first: may begin an answer: any but a corner that leaves no room for a box.
        after_box: may follow a box that may have a mask.
        in_label: may follow a box, a mask or a part of a label.
        after_separator: may follow a separator.
    """

    blank: Flags
    separator: Flags
    first: Flags
    after_box: Flags
    in_label: Flags
    after_separator: Flags

    @classmethod
    def of(cls, encoder: PromptEncoder) -> Self:
        """The rules of a tokenizer."""
        config = encoder.config
        texts = [text.decode("utf-8", "replace") for text in encoder.vocabulary]
        blank, words, separator = (
            np.array([pattern.fullmatch(text) is not None for text in texts])
            for pattern in (_BLANK, _WORDS, _SEPARATOR)
        )
        last_corner = config.first_loc_id + LOC_COUNT - 1
        corners = _flags(len(blank), range(config.first_loc_id, last_corner))
        codes = _flags(len(blank), range(config.first_seg_id, config.first_seg_id + SEG_COUNT))
        end = np.isin(np.arange(len(blank)), config.eos_ids)
        in_label = corners | words | separator | end
        return cls(
            blank=blank,
            separator=separator,
            first=~_flags(len(blank), range(last_corner, last_corner + 1)),
            after_box=in_label | codes,
            in_label=in_label,
            after_separator=corners | blank | end,
        )


def _flags(count: int, tokens: range) -> Flags:
    flags = np.zeros(count, np.bool_)
    flags[tokens.start : tokens.stop] = True
    return flags
