"""An RGB image to pixel values, bit for bit as transformers does it.

Knows Pillow's filters. Knows nothing of the model but the config of its images.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from paligemma_edge.runtime.manifest import ImageConfig


def pixel_values(image: Image.Image, config: ImageConfig) -> NDArray[np.float32]:
    """Resize and normalize an RGB image, bit for bit as transformers' Pillow backend does.

    The product with `rescale_factor` is rounded from float64 to float32, then mean and
    standard deviation are applied in float32. A byte has 256 values, so that is a table.

    Args:
        image: an RGB image, such as `load_image` gives; its aspect ratio is not kept.
        config: size, resampling filter, mean and standard deviation.

    Returns:
        float32 [3, R, R], R being `config.size`; channels are red, green, blue.
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
