"""What the text of an answer means: boxes, codes of masks, labels, and the rest.

The rules are those of PaliGemma's public demo: four `<loc>` (y0, x0, y1, x1), perhaps sixteen
`<seg>`, perhaps a label, joined by " ; ". Knows no pixels beyond the corners of a box.
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
    """Corners as shares of the image's height and width, each 0..1; may be empty."""

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
        """Box of four `<loc>` numbers 0..1023, a share being number / 1024."""
        return cls(y0 / LOC_COUNT, x0 / LOC_COUNT, y1 / LOC_COUNT, x1 / LOC_COUNT)

    @property
    def locations(self) -> tuple[int, int, int, int]:
        """The nearest `<loc>` numbers, y0, x0, y1, x1: those that the box was made of."""
        y0, x0, y1, x1 = (
            min(round(corner * LOC_COUNT), LOC_COUNT - 1)
            for corner in (self.y0, self.x0, self.y1, self.x1)
        )
        return y0, x0, y1, x1

    def pixels(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Corners y0, x0, y1, x1 in pixels, rounded as Python does; the last two lie outside."""
        return (
            round(self.y0 * height),
            round(self.x0 * width),
            round(self.y1 * height),
            round(self.x1 * width),
        )

    def evaluation_pixels(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Corners as PaliGemma's published scores count them: number / 1023, cut to integers."""
        y0, x0, y1, x1 = (number / (LOC_COUNT - 1) for number in self.locations)
        return int(y0 * height), int(x0 * width), int(y1 * height), int(x1 * width)


@dataclass(frozen=True)
class ParsedObject:
    """One object; `label` is empty where the answer names none."""

    label: str
    box: Box
    codes: tuple[int, ...] | None  # 16 of 0..127, for the mask decoder


@dataclass(frozen=True)
class ParsedAnswer:
    """An answer: its text as it came, the objects in it, and the words around them.

    `spans` holds where in the text each object stands, first character and the one behind it.
    """

    text: str
    detections: tuple[ParsedObject, ...]
    spans: tuple[tuple[int, int], ...]
    plain: str


def parse_answer(text: str) -> ParsedAnswer:
    """Find the objects of any text; it never raises.

    A group that is cut short is no object, and its tokens are no plain text either. Labels
    end at ";", "<" or ">" and are trimmed. Unlike the demo, a line break ends nothing, and
    numbers that are no tokens (`<loc1024>`, `<seg128>`) are text.
    """
    objects = list(_OBJECT.finditer(text))
    detections = tuple(_detection(found.groups()) for found in objects)
    spans = tuple((found.start(), found.start() + _length(found[0])) for found in objects)
    plain = _STRAY.sub("", _OBJECT.sub("", text)).strip()
    return ParsedAnswer(text, detections, spans, plain)


def _length(found: str) -> int:
    """Characters of an object without what parts it from the next."""
    return len(found.removesuffix("; ").rstrip())


def _detection(groups: tuple[str | None, ...]) -> ParsedObject:
    numbers = [int(group) for group in groups[:-1] if group is not None]
    codes = tuple(numbers[4:]) or None
    return ParsedObject((groups[-1] or "").strip(), Box.from_locations(*numbers[:4]), codes)
