"""The images of one prompt as one batch of pixel values."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from paligemma_edge.runtime.images.load import ImageInput, load_image
from paligemma_edge.runtime.images.preprocess import pixel_values
from paligemma_edge.runtime.manifest import ImageConfig
from paligemma_edge.runtime.timing import Stopwatch


@dataclass(frozen=True, eq=False)
class ImageBatch:
    """The images of one prompt as pixel values, and the width and height of the first."""

    pixel_values: NDArray[np.float32]  # [images, 3, R, R]
    width: int
    height: int

    @classmethod
    def of(cls, images: Sequence[Image.Image], config: ImageConfig) -> Self:
        """Preprocess loaded images, at least one."""
        pixels = np.stack([pixel_values(image, config) for image in images])
        return cls(pixels, *images[0].size)

    @property
    def count(self) -> int:
        """How many images the prompt is about."""
        return len(self.pixel_values)

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the pixel values: copies of an image are one."""
        return hashlib.sha256(self.pixel_values.data).digest()


def read_images(images: Sequence[ImageInput], config: ImageConfig, watch: Stopwatch) -> ImageBatch:
    """Read and preprocess one or more images; ImageError for one that cannot be read."""
    with watch.measure("preprocess"):
        return ImageBatch.of([load_image(image) for image in images], config)
