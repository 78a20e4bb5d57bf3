"""Masks of 64 x 64 at the size of the image.

Knows two rules: how PaliGemma's public demo shows a mask, and how its published scores count
one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from paligemma_edge.runtime.errors import DeviceError
from paligemma_edge.runtime.text.parse_answer import Box


def paste_mask(mask: NDArray[np.float32], box: Box, width: int, height: int) -> NDArray[np.float32]:
    """Paste a mask [64, 64] of about -1..1 into its box: float32 [height, width] in 0..1.

    The demo's rule: -1..1 becomes 0..255, cut to integers; bicubic to the box of
    `Box.pixels`; zero outside, and everywhere for a box without pixels.
    """
    _check(mask)
    soft = np.zeros((height, width), np.float32)
    y0, x0, y1, x1 = box.pixels(width, height)
    if y1 > y0 and x1 > x0:
        levels = (np.clip(mask * np.float32(0.5) + np.float32(0.5), 0, 1) * 255).astype(np.uint8)
        resized = Image.fromarray(levels).resize((x1 - x0, y1 - y0), Image.Resampling.BICUBIC)
        soft[y0:y1, x0:x1] = np.asarray(resized) / 255
    return soft


def inside(soft: NDArray[np.float32]) -> NDArray[np.bool_]:
    """The pixels of a soft mask above 0.5, bool [height, width]."""
    return soft > 0.5


def evaluation_mask(
    mask: NDArray[np.float32], box: Box, width: int, height: int
) -> NDArray[np.bool_]:
    """The pixels that PaliGemma's published scores count, bool [height, width].

    The evaluator's rule: bilinear to the box of `Box.evaluation_pixels`, above zero. A box
    without pixels counts none.
    """
    _check(mask)
    counted = np.zeros((height, width), np.bool_)
    y0, x0, y1, x1 = box.evaluation_pixels(width, height)
    if y1 > y0 and x1 > x0:
        values = Image.fromarray(mask.astype(np.float32, copy=False))
        resized = values.resize((x1 - x0, y1 - y0), Image.Resampling.BILINEAR)
        counted[y0:y1, x0:x1] = np.asarray(resized) > 0
    return counted


def _check(mask: NDArray[np.float32]) -> None:
    if not np.isfinite(mask).all():
        raise DeviceError(
            "the mask decoder produced NaN or infinite values, wanted about -1..1; "
            "use a variant that computes in float32"
        )
