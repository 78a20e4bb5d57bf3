"""What calibration saw at the input of a layer: how large, and how values go together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # help on the commands reads recipes, and has no onnx_ir
    from paligemma_edge.quantize.graphs.derived_weights import Float

# Of a wider input only the second moments of neighbours are kept: 16384² would be 1 GB.
WIDEST = 1024
PEAK_BLOCK = 32


@dataclass(frozen=True)
class Moments:
    """Statistics of one input of `width` channels.

    `largest` float32 [width] is the largest magnitude of each channel and `squares` [width] its
    mean square. `peaks` [width / 32] is the mean square of the largest magnitude of each token
    within 32 neighbours, `peak` within all. `second` holds the mean of `x.T @ x`, in square
    blocks down the diagonal; it is empty where they are not needed.
    """

    largest: Float
    squares: Float
    peaks: Float
    peak: float
    second: tuple[Float, ...] = ()

    def scaled(self, factors: Float) -> Moments:
        """The statistics of `x * factors`; those of the peaks by the factors' mean."""
        blocks, start = [], 0
        for block in self.second:
            part = factors[start : start + len(block)]
            blocks.append(block * part[:, None] * part)
            start += len(block)
        squares = self.squares * factors**2
        # How much a peak shrinks is not known, for its channel is not: as much as the whole.
        shrunk = float(squares.sum() / max(self.squares.sum(), 1e-30))
        return Moments(
            self.largest * np.abs(factors),
            squares,
            self.peaks * np.float32(shrunk),
            self.peak * shrunk,
            tuple(blocks),
        )


class Accumulator:
    """Adds up the statistics of an input, token by token."""

    def __init__(self, width: int, *, second: bool) -> None:
        self.weight = 0.0
        self.largest = np.zeros(width, np.float32)
        self.squares = np.zeros(width, np.float64)
        self.peaks = np.zeros(-(-width // PEAK_BLOCK), np.float64)
        self.peak = 0.0
        starts = range(0, width, WIDEST) if second else ()
        self.slices = [slice(start, min(start + WIDEST, width)) for start in starts]
        self.second = [np.zeros((s.stop - s.start,) * 2, np.float32) for s in self.slices]

    def add(self, x: Float, weight: float) -> None:
        """`x` [tokens, width], each of them worth `weight`."""
        self.weight += weight * len(x)
        sizes = np.abs(x)
        np.maximum(self.largest, sizes.max(axis=0), out=self.largest)
        self.squares += weight * np.square(x, dtype=np.float64).sum(axis=0)
        peaks = np.maximum.reduceat(sizes, range(0, x.shape[1], PEAK_BLOCK), axis=1)
        self.peaks += weight * np.square(peaks, dtype=np.float64).sum(axis=0)
        self.peak += weight * float(np.square(peaks.max(axis=1), dtype=np.float64).sum())
        for place, columns in enumerate(self.slices):
            part = x[:, columns]
            self.second[place] += np.float32(weight) * (part.T @ part)

    def moments(self) -> Moments:
        """The means so far."""
        total = max(self.weight, 1e-12)
        return Moments(
            self.largest,
            (self.squares / total).astype(np.float32),
            (self.peaks / total).astype(np.float32),
            self.peak / total,
            tuple(block / np.float32(total) for block in self.second),
        )
