"""One object of an answer: its box in the image, its label, its score and its mask."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paligemma_edge.runtime.results.mask import inside, paste_mask
from paligemma_edge.runtime.text.parse_answer import Box, ParsedObject


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Detection:
    """One object in an image of `width` x `height` pixels.

    `score` is the mean log-probability of the tokens of this object alone; `exp(score)` is in
    0..1. Masks are kept as the mask decoder gave them and are pasted into the image on request.

    Example:
        >>> for detection in model.segment("street.jpg", "car"):
        ...     print(detection.label, detection.xyxy, detection.mask.sum())
    """

    parsed: ParsedObject
    score: float
    width: int
    height: int
    decoded: NDArray[np.float32] | None = None  # [64, 64], about -1..1; inside where above 0

    def __repr__(self) -> str:
        masked = self.decoded is not None
        name = f"label={self.label!r}, score={self.score:.3g}, xyxy={self.xyxy}"
        return f"Detection({name}, {masked=})"

    @property
    def label(self) -> str:
        """The name that the answer gives it; empty where it gives none."""
        return self.parsed.label

    @property
    def box(self) -> Box:
        """Corners y0, x0, y1, x1 as shares of the image's sides, 0..1: `<loc>` / 1024."""
        return self.parsed.box

    @property
    def xyxy(self) -> tuple[int, int, int, int]:
        """Corners x0, y0, x1, y1 in pixels, x1 and y1 just outside. The box may be empty."""
        y0, x0, y1, x1 = self.box.pixels(self.width, self.height)
        return x0, y0, x1, y1

    @property
    def soft_mask(self) -> NDArray[np.float32] | None:
        """float32 [height, width] in 0..1; None without a mask. Computed on each call."""
        if self.decoded is None:
            return None
        return paste_mask(self.decoded, self.box, self.width, self.height)

    @property
    def mask(self) -> NDArray[np.bool_] | None:
        """bool [height, width]; None without a mask. Computed on each call."""
        soft = self.soft_mask
        return None if soft is None else inside(soft)
