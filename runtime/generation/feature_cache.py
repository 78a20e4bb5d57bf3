"""Images to features; those of recent images are cached.

An image is known by its pixels as the model sees them, so that copies of a file are one.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from paligemma_edge.runtime.contract import itemsize
from paligemma_edge.runtime.engine.engine import Engine
from paligemma_edge.runtime.images.batch import ImageBatch
from paligemma_edge.runtime.timing import Stopwatch

if TYPE_CHECKING:
    import onnxruntime as ort

_KEPT_BYTES = 64 << 20  # of features: 32 images of PaliGemma-3B at 224, 2 at 896


@dataclass(frozen=True, eq=False)
class ImageFeatureCache:
    """Encodes and projects images, and keeps what it made of the latest ones."""

    engine: Engine
    kept: dict[bytes, ort.OrtValue] = field(default_factory=dict)  # by digest, the oldest first

    def features(self, images: ImageBatch, watch: Stopwatch) -> ort.OrtValue:
        """Features [images, N, hidden]."""
        digest = hashlib.sha256(images.pixel_values.data).digest()
        features = self.kept.pop(digest, None) or self._encode(images.pixel_values, watch)
        self.kept[digest] = features
        size = itemsize(self.engine.dtype) * int(np.prod(features.shape()))
        most = max(1, _KEPT_BYTES // size)
        while len(self.kept) > most:
            del self.kept[next(iter(self.kept))]
        return features

    def _encode(self, pixels: NDArray[np.float32], watch: Stopwatch) -> ort.OrtValue:
        with watch.measure("vision"):
            hidden = self.engine.encode(pixels)
        with watch.measure("projector"):
            return self.engine.project(hidden)
