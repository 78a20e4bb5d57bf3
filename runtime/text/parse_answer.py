"""The text of an answer as objects: boxes, codes of masks, labels; and the other words.

The rules are those of PaliGemma's public demo: four `<loc>` (y0, x0, y1, x1), perhaps sixteen
`<seg>`, perhaps a label, joined by " ; ". Knows no pixels except the corners of a box.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from paligemma_edge.runtime.contract import CODES_PER_MASK, LOC_COUNT
from paligemma_edge.runtime.errors import OptionError

_LOC = "<loc(0[0-9]{3}|10[01][0-9]|102[0-3])>"
_SEG = "<seg(0[0-9]{2}|1[01][0-9]|12[0-7])>"
_OBJECT = re.compile(rf"{_LOC * 4}\s*(?:{_SEG * CODES_PER_MASK})?\s*([^;<>]+)?(?:; )?")
_STRAY = re.compile(f"{_LOC}|{_SEG}")


@dataclass(frozen=True)
class Box:
    """The corners of a box as shares of the image's height and width; the box may be empty.

    Args:
        y0: top, 0..1 of the height.
        x0: left, 0..1 of the width.
        y1: bottom.
        x1: right.

    Raises:
        OptionError: a corner is not in 0..1.

    Example:
        >>> Box(0.25, 0.1, 0.75, 0.6).pixels(width=60, height=40)
        (10, 6, 30, 36)
    """

    y0: float
    x0: float
    y1: float
    x1: float

    def __post_init__(self) -> None:
        corners = (self.y0, self.x0, self.y1, self.x1)
        if not all(0 <= corner <= 1 for corner in corners):
            raise OptionError(f"a box has corners {corners}, wanted shares from 0 to 1")

    @classmethod
    def from_locations(cls, y0: int, x0: int, y1: int, x1: int) -> Self:
        """Box of four `<loc>` numbers 0..1023; a share is number / 1024."""
        return cls(y0 / LOC_COUNT, x0 / LOC_COUNT, y1 / LOC_COUNT, x1 / LOC_COUNT)

    @classmethod
    def from_xyxy(cls, corners: tuple[float, float, float, float]) -> Self:
        """Box of corners x0, y0, x1, y1 as shares, such as `Detection.xyxy_normalized`."""
        x0, y0, x1, y1 = corners
        return cls(y0, x0, y1, x1)

    @property
    def xyxy(self) -> tuple[float, float, float, float]:
        """Corners x0, y0, x1, y1 as shares of width and height, 0..1."""
        return self.x0, self.y0, self.x1, self.y1

    @property
    def locations(self) -> tuple[int, int, int, int]:
        """The nearest `<loc>` numbers 0..1023, y0, x0, y1, x1: those that the box was made of."""
        y0, x0, y1, x1 = (
            min(round(corner * LOC_COUNT), LOC_COUNT - 1)
            for corner in (self.y0, self.x0, self.y1, self.x1)
        )
        return y0, x0, y1, x1

    def pixels(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Corners y0, x0, y1, x1 in pixels, rounded as Python does; y1 and x1 are just outside."""
        return (
            round(self.y0 * height),
            round(self.x0 * width),
            round(self.y1 * height),
            round(self.x1 * width),
        )

    def xyxy_pixels(self, width: int, height: int) -> tuple[int, int, int, int]:
        """`pixels` in the order x0, y0, x1, y1."""
        y0, x0, y1, x1 = self.pixels(width, height)
        return x0, y0, x1, y1

    def evaluation_pixels(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Corners y0, x0, y1, x1 as PaliGemma's published scores use them: cut number / 1023."""
        y0, x0, y1, x1 = (number / (LOC_COUNT - 1) for number in self.locations)
        return int(y0 * height), int(x0 * width), int(y1 * height), int(x1 * width)


@dataclass(frozen=True)
class ParsedObject:
    """One object of an answer's text; `label` is empty where the text has none."""

    label: str
    box: Box
    codes: tuple[int, ...] | None  # 16 of 0..127, for the mask decoder

    @property
    def xyxy_normalized(self) -> tuple[float, float, float, float]:
        """Corners x0, y0, x1, y1 as shares of width and height, 0..1."""
        return self.box.xyxy


@dataclass(frozen=True)
class ParsedAnswer:
    """An answer: its whole text, the objects in it, and the words around them.

    `spans` are the start and end of each object in the text, in characters; the end is exclusive.
    """

    text: str
    objects: tuple[ParsedObject, ...]
    spans: tuple[tuple[int, int], ...]
    plain: str


def parse_answer(text: str) -> ParsedAnswer:
    """Find the objects of any text; it never raises.

    An object that is cut short is left out, and so are its tokens in the plain text. Labels
    end at ";", "<" or ">" and are trimmed. Unlike in the demo, a line break ends nothing, and
    numbers that are not tokens (`<loc1024>`, `<seg128>`) are text.
    """
    matches = list(_OBJECT.finditer(text))
    objects = tuple(_parsed_object(match.groups()) for match in matches)
    spans = tuple((match.start(), match.start() + _length(match[0])) for match in matches)
    plain = _STRAY.sub("", _OBJECT.sub("", text)).strip()
    return ParsedAnswer(text, objects, spans, plain)


def _length(text: str) -> int:
    """Characters of an object without the separator after it."""
    return len(text.removesuffix("; ").rstrip())


def _parsed_object(groups: tuple[str | None, ...]) -> ParsedObject:
    numbers = [int(group) for group in groups[:-1] if group is not None]
    codes = tuple(numbers[4:]) or None
    return ParsedObject((groups[-1] or "").strip(), Box.from_locations(*numbers[:4]), codes)
