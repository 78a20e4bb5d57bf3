"""A soft mask as a PNG of its box, which a browser draws as it is.

Knows one detection. Knows nothing of how it is sent.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from paligemma_edge.runtime.results.detection import Detection
from paligemma_edge.runtime.results.mask import paste_mask
from paligemma_edge.runtime.text.parse_answer import Box

_WHOLE = Box(0, 0, 1, 1)


def mask_png(detection: Detection) -> bytes | None:
    """The mask within the box of a detection, in 8-bit grey.

    Args:
        detection: with or without a mask.

    Returns:
        A PNG of the size of `detection.xyxy`, whose levels are `soft_mask` times 255; None without
        a mask, and where the box has no pixels.

    Example:
        >>> Image.open(io.BytesIO(mask_png(detection))).size
        (180, 170)
    """
    x0, y0, x1, y1 = detection.xyxy
    if detection.decoded_mask is None or x1 <= x0 or y1 <= y0:
        return None
    soft = paste_mask(detection.decoded_mask, _WHOLE, x1 - x0, y1 - y0)
    file = io.BytesIO()
    Image.fromarray(np.round(soft * 255).astype(np.uint8)).save(file, "PNG", compress_level=1)
    return file.getvalue()
