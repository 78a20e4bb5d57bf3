"""What calibration saw at the input of a layer: how large, and how values go together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from paligemma_edge.quantize.derived import Float

# The second moments of a wider input are kept for neighbours alone: 16384² would be 1 GB.
WIDEST = 2048


@dataclass(frozen=True)
class Moments:
    """Statistics of one input of `width` channels.

    `largest` float32 [width] is the largest magnitude of each channel and `squares` [width] its
    mean square. `second` holds the mean of `x.T @ x`, in square blocks down the diagonal; it is
    empty where it was not asked for.
    """

    largest: Float
    squares: Float
    second: tuple[Float, ...] = ()

    def scaled(self, factors: Float) -> Moments:
        """The statistics of `x * factors`."""
        blocks, start = [], 0
        for block in self.second:
            part = factors[start : start + len(block)]
            blocks.append(block * part[:, None] * part)
            start += len(block)
        return Moments(self.largest * np.abs(factors), self.squares * factors**2, tuple(blocks))


class Accumulator:
    """Adds up the statistics of an input, token by token."""

    def __init__(self, width: int, *, second: bool) -> None:
        self.weight = 0.0
        self.largest = np.zeros(width, np.float32)
        self.squares = np.zeros(width, np.float64)
        starts = range(0, width, WIDEST) if second else ()
        self.slices = [slice(start, min(start + WIDEST, width)) for start in starts]
        self.second = [np.zeros((s.stop - s.start,) * 2, np.float32) for s in self.slices]

    def add(self, x: Float, weight: float) -> None:
        """`x` [tokens, width], each of them worth `weight`."""
        self.weight += weight * len(x)
        np.maximum(self.largest, np.abs(x).max(axis=0), out=self.largest)
        self.squares += weight * np.square(x, dtype=np.float64).sum(axis=0)
        for block, columns in zip(self.second, self.slices, strict=True):
            part = x[:, columns]
            block += np.float32(weight) * (part.T @ part)

    def moments(self) -> Moments:
        """The means so far."""
        total = max(self.weight, 1e-12)
        return Moments(
            self.largest,
            (self.squares / total).astype(np.float32),
            tuple(block / np.float32(total) for block in self.second),
        )
