"""Whether tokens are an answer of objects and nothing else, told by a regular expression."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from tests.helpers.sample_tokenizer import EOS, LOC, SEG, encoder

CORNERS, CODES = range(LOC, LOC + 1024), range(SEG, SEG + 128)
TEXTS = [text.decode("utf-8", "replace") for text in encoder().vocabulary]
BLANKS = {token for token, text in enumerate(TEXTS) if text.isspace()}


def text_of(tokens: Sequence[int]) -> str:
    """Tokens as text for a regular expression: L for a location, S for a code, the end as E.

    Words have other letters. A piece of a character is a letter, and "!" is what no object holds.
    """

    def one(token: int) -> str:
        if token in CORNERS:
            return "L"
        if token in CODES:
            return "S"
        text = re.sub("[LSE!\ufffd]", "x", TEXTS[token]) or "!"
        return "E" if token == EOS else re.sub("[<>]", "!", text)

    return "".join(map(one, tokens))


OBJECT = r"L{4}\s*%s\s*[^;LSE!]*(;\s*)?"
FORM = {
    masks: re.compile(f"(?:{OBJECT % ('(S{16})?' if masks else '')})*E") for masks in (False, True)
}


def is_of_the_form(tokens: Sequence[int], masks: bool) -> bool:
    """Whether an answer is objects and nothing else, none of them with an empty box."""
    corners = [token - LOC for token in tokens if token in CORNERS]
    numbers = np.array(corners if len(corners) % 4 == 0 else [0] * 4).reshape(-1, 4)
    solid = bool((numbers[:, :2] < numbers[:, 2:]).all())
    return solid and FORM[masks].fullmatch(text_of(tokens)) is not None
