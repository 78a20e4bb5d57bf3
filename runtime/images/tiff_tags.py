"""The tables of tags of a TIFF, and of EXIF, which is one: how much they hold, and some numbers."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping

TIFF_HEADER = re.compile(rb"II[*+]\0|MM\0[*+]")

_BYTE_TYPES = frozenset((1, 2, 6, 7))  # read as one value, however long
_INTEGERS: Mapping[int, str] = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 16: "Q", 17: "q"}
_CHILDREN = frozenset((34665, 34853, 40965))  # tags of the EXIF, GPS and interoperability tables


def is_tiff(data: bytes) -> bool:
    """Whether the bytes begin as a TIFF."""
    return len(data) >= 8 and TIFF_HEADER.match(data) is not None


class TiffTags:
    """The first table of tags, and how many numbers it and each kind of table below it hold."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._order = "<" if data[:2] == b"II" else ">"
        self._big = ord("+") in data[2:4]
        self._places: dict[int, tuple[int, int, int]] = {}  # by tags: type, count, where it stands
        self.numbers = 0
        children = self._count(self._offset(8 if self._big else 4), self._places)
        for child in children.values():
            for grandchild in self._count(child).values():
                self._count(grandchild)

    def integers(self, tag: int) -> tuple[int, ...]:
        """The numbers of a tag of the first table, as far as the file holds them.

        Where a tag comes twice, libtiff takes the first.
        """
        kind, count, at = self._places.get(tag, (0, 0, 0))
        if kind not in _INTEGERS:
            return ()
        code = self._order + _INTEGERS[kind]
        size = struct.calcsize(code)
        start = at if size * count <= (8 if self._big else 4) else self._offset(at)
        whole = min(count, max(0, len(self._data) - start) // size)
        part = self._data[start : start + size * whole]
        return tuple(number for (number,) in struct.iter_unpack(code, part))

    def _count(
        self, table: int, places: dict[int, tuple[int, int, int]] | None = None
    ) -> dict[int, int]:
        """Add the numbers of a table; the places of those that it leads to."""
        children = {}
        first = table + (8 if self._big else 2)
        entry, size = (f"{self._order}HHQ", 20) if self._big else (f"{self._order}HHI", 12)
        end = first + size * self._number("Q" if self._big else "H", table)
        for at in range(first, min(end, len(self._data) - size + 1), size):
            tag, kind, count = struct.unpack_from(entry, self._data, at)
            self.numbers += 0 if kind in _BYTE_TYPES else count
            value = at + struct.calcsize(entry)
            if places is not None:
                places.setdefault(tag, (kind, count, value))
            if tag in _CHILDREN:
                children[tag] = self._offset(value)
        return children

    def _offset(self, at: int) -> int:
        return self._number("Q" if self._big else "I", at)

    def _number(self, kind: str, at: int) -> int:
        """A number of the file; 0 beyond its end."""
        part = self._data[at : at + struct.calcsize(self._order + kind)]
        if len(part) < struct.calcsize(self._order + kind):
            return 0
        number: int = struct.unpack(self._order + kind, part)[0]
        return number
