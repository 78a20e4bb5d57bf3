"""One object of an answer: its label, its confidence, its box in the image and its mask."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paligemma_edge.runtime.results.confidence import confidence_of
from paligemma_edge.runtime.results.mask import inside, paste_mask
from paligemma_edge.runtime.text.parse_answer import Box


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Detection:
    """One object in an image of `width` x `height` pixels.

    Masks are kept as the mask decoder gave them and are pasted into the image on request.

    Args:
        label: the name that the answer gives it; empty where it gives none.
        class_id: place of `label` in the result's `classes`; -1 where it is not among them.
        log_prob: logarithm of `confidence`.
        xyxy_normalized: corners x0, y0, x1, y1 as shares of the image's width and height, 0..1:
            the model's `<loc>` numbers / 1024. The box may be empty.
        width: of the image, in pixels.
        height: of the image, in pixels.
        decoded_mask: float32 [64, 64] of about -1..1, inside where above 0; None without a mask.

    Example:
        >>> for detection in model.segment("street.jpg", "car"):
        ...     print(detection.label, detection.confidence, detection.xyxy, detection.mask.sum())
    """

    label: str
    class_id: int = -1
    log_prob: float
    xyxy_normalized: tuple[float, float, float, float]
    width: int
    height: int
    decoded_mask: NDArray[np.float32] | None = None

    def __repr__(self) -> str:
        masked = self.decoded_mask is not None
        name = f"label={self.label!r}, confidence={self.confidence:.3g}, xyxy={self.xyxy}"
        return f"Detection({name}, {masked=})"

    @property
    def confidence(self) -> float:
        """How sure the model is of this object, 0..1; the same number in every format."""
        return confidence_of(self.log_prob)

    @property
    def xyxy(self) -> tuple[int, int, int, int]:
        """Corners x0, y0, x1, y1 in pixels, x1 and y1 just outside. The box may be empty."""
        return self._box.xyxy_pixels(self.width, self.height)

    @property
    def soft_mask(self) -> NDArray[np.float32] | None:
        """float32 [height, width] in 0..1; None without a mask. Computed on each call."""
        if self.decoded_mask is None:
            return None
        return paste_mask(self.decoded_mask, self._box, self.width, self.height)

    @property
    def mask(self) -> NDArray[np.bool_] | None:
        """bool [height, width]; None without a mask. Computed on each call."""
        soft = self.soft_mask
        return None if soft is None else inside(soft)

    @property
    def _box(self) -> Box:
        return Box.from_xyxy(self.xyxy_normalized)
