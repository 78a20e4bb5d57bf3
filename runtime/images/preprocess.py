"""An RGB image to pixel values, bit by bit as transformers does it.

Knows Pillow's filters. Knows nothing of the model but the config of its images.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from paligemma_edge.runtime.manifest import ImageConfig


def pixel_values(image: Image.Image, config: ImageConfig) -> NDArray[np.float32]:
    """Squeeze an RGB image to float32 [3, R, R], bit by bit as transformers' Pillow backend.

    The product with `rescale_factor` is rounded from float64 to float32, then mean and
    standard deviation are applied in float32. A byte has 256 values, so that is a table.
    """
    assert image.mode == "RGB"
    resample = Image.Resampling[config.resample.upper()]
    pixels = np.asarray(image.resize((config.size, config.size), resample))
    scaled = (np.arange(256, dtype=np.float64) * config.rescale_factor).astype(np.float32)
    channels = zip(config.mean, config.std, np.moveaxis(pixels, -1, 0), strict=True)
    return np.stack(
        [
            ((scaled - np.float32(mean)) / np.float32(std)).astype(np.float32)[channel]
            for mean, std, channel in channels
        ]
    )
