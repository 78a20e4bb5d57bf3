"""Masks as COCO's run-length encoding: runs column by column, the first one outside the mask.

Knows boolean masks and COCO's string of runs. Knows nothing of objects.
The format is that of pycocotools: https://github.com/cocodataset/cocoapi, common/maskApi.c.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from numbers import Integral

import numpy as np
from numpy.typing import NDArray

from paligemma_edge.runtime.errors import OptionError

_FIRST = 48  # the character "0"; each character holds five bits of a number, low bits first
_MORE, _SIGN, _BITS = 0x20, 0x10, 0x1F
_MOST_CHARACTERS = 7  # of one number: 35 bits, of which a run takes 33
_MOST_PIXELS = 2**31 - 1
_STRIP = 64  # rows transposed at a time, so that they stay in the CPU's cache


@dataclass(frozen=True, eq=False)
class Rle:
    """Runs of a mask, alternately outside and inside, down each column of the whole image."""

    size: tuple[int, int]  # height, width
    counts: NDArray[np.int64]  # [runs]; only the first may be 0

    @property
    def compressed(self) -> str:
        """The runs as pycocotools' `counts`."""
        numbers = self.counts.copy()
        numbers[3:] -= self.counts[1:-2]
        return _written(numbers)

    @property
    def area(self) -> int:
        """Pixels inside the mask."""
        return int(self.counts[1::2].sum())

    @property
    def bbox(self) -> tuple[int, int, int, int]:
        """Left, top, width and height of the pixels inside; zeros where there are none."""
        height = self.size[0]
        ends = np.cumsum(self.counts)
        starts, lasts = ends[:-1:2], ends[1::2] - 1
        if not len(starts):
            return 0, 0, 0, 0
        left, right = int(starts[0] // height), int(lasts[-1] // height)
        if (starts // height < lasts // height).any():  # a run that continues in the next column
            return left, 0, right - left + 1, height
        top, bottom = int((starts % height).min()), int((lasts % height).max())
        return left, top, right - left + 1, bottom - top + 1

    def to_dict(self) -> dict[str, list[int] | str]:
        """`{"size": [height, width], "counts": "..."}`, which pycocotools decodes."""
        return {"size": list(self.size), "counts": self.compressed}


def encode(
    mask: NDArray[np.bool_], *, at: tuple[int, int] = (0, 0), size: tuple[int, int] | None = None
) -> Rle:
    """Runs of a mask, bool [height, width].

    With `size` (height, width), the mask is a part of a larger one that is empty elsewhere; the
    part's first pixel is at row and column `at`. The cost is that of the part.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    height, width = size or mask.shape
    if not len(rows):
        return Rle((height, width), np.array([height * width], np.int64))
    part = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    top, left = at[0] + int(rows[0]), at[1] + int(columns[0])
    offsets = _changes(part, top, left, height)
    ends = offsets[:-1] if offsets[-1] == height * width else offsets
    return Rle((height, width), np.diff(ends, prepend=0, append=height * width))


def decode(size: Sequence[int], counts: str | bytes | Sequence[int]) -> NDArray[np.bool_]:
    """Mask, bool [height, width], of runs or of pycocotools' string of them.

    OptionError where the runs are not valid, or not those of a mask of this size.
    """
    height, width = _checked_size(size)
    text = counts.decode("latin-1") if isinstance(counts, bytes) else counts
    runs = _read(text) if isinstance(text, str) else _listed(text)
    if (runs < 0).any() or (runs > height * width).any() or int(runs.sum()) != height * width:
        raise OptionError(
            f"the runs of a mask do not make up {height} x {width} pixels; give the size, "
            "height first, and the counts of one mask"
        )
    inside = np.arange(len(runs)) % 2 == 1
    return np.repeat(inside, runs).reshape(width, height).T


def area(counts: str) -> int:
    """Pixels inside a mask, from pycocotools' string of its runs; OptionError as in `decode`."""
    return int(_read(counts)[1::2].sum())


def _changes(part: NDArray[np.bool_], top: int, left: int, height: int) -> NDArray[np.int64]:
    """Starts and ends of the runs inside, alternately, as offsets down the image's columns."""
    rows, columns = part.shape
    turned = np.zeros((columns, rows + 2), np.bool_)  # each column between two pixels outside
    for first in range(0, rows, _STRIP):
        strip = part[first : first + _STRIP]
        turned[:, first + 1 : first + 1 + len(strip)] = strip.T
    flat = turned.ravel()
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    column = np.arange(columns)
    starts = column * (rows + 2)
    counts = np.diff(np.searchsorted(changes, starts), append=len(changes))
    offsets = changes + np.repeat((left + column) * height + top - starts, counts)
    return _joined(offsets) if rows == height else offsets


def _joined(offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Join a run that ends at the foot of a column with one that starts the next column."""
    equal = np.flatnonzero(offsets[1:] == offsets[:-1])
    return np.delete(offsets, np.concatenate([equal, equal + 1]))


def _written(numbers: NDArray[np.int64]) -> str:
    """Numbers in five bits a character; the last character of a number has its sign."""
    digits, present = [], []
    last = np.zeros(len(numbers), np.bool_)
    while not last.all():
        digit, numbers = numbers & _BITS, numbers >> 5
        present.append(~last)
        last = last | (numbers == np.where(digit & _SIGN, -1, 0))
        digits.append(digit + np.where(last, 0, _MORE) + _FIRST)
    characters = np.stack(digits, 1).astype(np.uint8)[np.stack(present, 1)]
    return characters.tobytes().decode("ascii")


def _read(text: str) -> NDArray[np.int64]:
    """The runs of pycocotools' string; each from the fourth on differs from the one before last."""
    codes = np.frombuffer(text.encode("utf-8", "replace"), np.uint8).astype(np.int64) - _FIRST
    if not len(codes) or (codes >> 6).any() or codes[-1] & _MORE:
        raise OptionError(
            "the counts of a mask are not a COCO string of runs; check what wrote them"
        )
    ends = np.flatnonzero(codes & _MORE == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > _MOST_CHARACTERS:
        raise OptionError(
            "the counts of a mask hold a run that is too long for any image; check them"
        )
    shifts = 5 * (np.arange(len(codes)) - np.repeat(starts, lengths))
    numbers = np.add.reduceat((codes & _BITS) << shifts, starts)
    numbers -= np.where(codes[ends] & _SIGN, 1 << 5 * lengths, 0)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers


def _listed(counts: Sequence[int]) -> NDArray[np.int64]:
    with suppress(ValueError):  # of lists of different lengths
        runs = np.asarray(counts)
        if runs.ndim == 1 and runs.dtype.kind in "iu":
            return runs.astype(np.int64)
    raise OptionError(
        "the counts of a mask are neither a list of whole numbers nor a string of them"
    )


def _checked_size(size: Sequence[int]) -> tuple[int, int]:
    whole = len(size) == 2 and all(isinstance(side, Integral) and side >= 0 for side in size)
    if not whole or int(size[0]) * int(size[1]) > _MOST_PIXELS:
        raise OptionError(f"a mask of size {size!s:.80}, wanted [height, width] in pixels")
    return int(size[0]), int(size[1])
