"""The images of one prompt as one batch of pixel values."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from paligemma_edge.runtime.images.load import MAX_PIXELS, ImageInput, load_image
from paligemma_edge.runtime.images.preprocess import pixel_values
from paligemma_edge.runtime.manifest import ImageConfig
from paligemma_edge.runtime.timing import Stopwatch


@dataclass(frozen=True, eq=False)
class ImageBatch:
    """The images of one prompt as pixel values, and the width and height of the first."""

    pixel_values: NDArray[np.float32]  # [images, 3, R, R]
    width: int
    height: int

    @property
    def count(self) -> int:
        """How many images the prompt is about."""
        return len(self.pixel_values)

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the pixel values: copies of an image are one."""
        return hashlib.sha256(self.pixel_values.data).digest()


@dataclass(frozen=True)
class ImageReader:
    """How images are read for a model; any number of threads may use it at once."""

    config: ImageConfig
    max_pixels: int = MAX_PIXELS

    def load(self, image: ImageInput) -> Image.Image:
        """An image as RGB; ImageError where it cannot be read or is too large."""
        return load_image(image, max_pixels=self.max_pixels)

    def hold(self, image: ImageInput) -> ImageInput:
        """An image that stays as it is, whatever its giver does with it next.

        A camera's loop fills one array again and again, a generator closes the file that it gave.
        """
        if isinstance(image, np.ndarray):
            return image.copy()
        return image if isinstance(image, str | os.PathLike | bytes) else self.load(image)

    def read(self, images: Sequence[ImageInput], watch: Stopwatch) -> ImageBatch:
        """Read and preprocess one or more images; ImageError for one that cannot be read."""
        with watch.measure("preprocess"):
            return self.preprocess(map(self.load, images))

    def preprocess(self, images: Iterable[Image.Image]) -> ImageBatch:
        """Loaded images, at least one, as pixel values; each is taken when its turn comes.

        So an iterator can let each go before it loads the next: one may take a gigabyte.
        """
        sizes, pixels = [], []
        for image in images:
            sizes.append(image.size)
            pixels.append(pixel_values(image, self.config))
            del image
        return ImageBatch(np.stack(pixels), *sizes[0])
