"""How well two lists of objects agree: boxes and masks, matched by label, the best pair first.

Knows corners and pixels. Knows nothing of where the objects come from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class EvalObject:
    """Corners y0, x0, y1, x1 in pixels; the mask is bool [height, width] of the image."""

    label: str
    box: tuple[float, float, float, float]
    mask: NDArray[np.bool_] | None


Overlap: TypeAlias = Callable[[EvalObject, EvalObject], float]


def mean_overlap(
    wanted: Sequence[EvalObject], actual: Sequence[EvalObject], overlap: Overlap
) -> float:
    """Mean IoU, 0..1; an object that has no partner of its label counts 0.

    1 where neither list has an object.
    """
    if not wanted and not actual:
        return 1.0
    pairs = np.zeros((len(wanted), len(actual)))
    for row, one in enumerate(wanted):
        for column, two in enumerate(actual):
            if one.label == two.label:
                pairs[row, column] = overlap(one, two)
    return _matched(pairs) / max(pairs.shape)


def box_iou(one: EvalObject, two: EvalObject) -> float:
    """Intersection over union of the boxes; equal boxes overlap whole even if they are empty."""
    if one.box == two.box:
        return 1.0
    top, left = (max(a, b) for a, b in zip(one.box[:2], two.box[:2], strict=True))
    bottom, right = (min(a, b) for a, b in zip(one.box[2:], two.box[2:], strict=True))
    shared = max(bottom - top, 0.0) * max(right - left, 0.0)
    union = _area(one.box) + _area(two.box) - shared
    return shared / union if union > 0 else 0.0


def mask_iou(one: EvalObject, two: EvalObject) -> float:
    """Intersection over union of the masks; two empty ones are equal, an absent one is neither."""
    if one.mask is None or two.mask is None:
        return 0.0
    union = np.count_nonzero(one.mask | two.mask)
    return np.count_nonzero(one.mask & two.mask) / union if union else 1.0


def _matched(pairs: NDArray[np.float64]) -> float:
    """The sum over pairs, best pair first, each object used once."""
    left, total = pairs.copy(), 0.0
    while left.size and left.max() > 0:
        row, column = np.unravel_index(left.argmax(), left.shape)
        total += float(left[row, column])
        left[row, :] = left[:, column] = 0
    return total


def _area(box: tuple[float, float, float, float]) -> float:
    y0, x0, y1, x1 = box
    return max(y1 - y0, 0.0) * max(x1 - x0, 0.0)
