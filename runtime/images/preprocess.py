"""An RGB picture to pixel values, bit by bit as transformers does it.

Knows Pillow's filters. Knows nothing of the model but the facts of its pictures.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from paligemma_edge.runtime.manifest import ImageFacts


def pixel_values(image: Image.Image, facts: ImageFacts) -> NDArray[np.float32]:
    """Squeeze an RGB picture to float32 [3, R, R], bit by bit as transformers' Pillow backend.

    The product with `rescale_factor` is rounded from float64 to float32, then mean and
    standard deviation are applied in float32. A byte has 256 values, so that is a table.
    """
    assert image.mode == "RGB"
    resample = Image.Resampling[facts.resample.upper()]
    pixels = np.asarray(image.resize((facts.size, facts.size), resample))
    scaled = (np.arange(256, dtype=np.float64) * facts.rescale_factor).astype(np.float32)
    channels = zip(facts.mean, facts.std, np.moveaxis(pixels, -1, 0), strict=True)
    return np.stack(
        [
            ((scaled - np.float32(mean)) / np.float32(std)).astype(np.float32)[channel]
            for mean, std, channel in channels
        ]
    )
