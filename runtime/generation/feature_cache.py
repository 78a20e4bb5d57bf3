"""Images to features; those of recent images are cached.

An image is known by its pixels as the model sees them, so that copies of a file are one.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from paligemma_edge.runtime.contract import itemsize
from paligemma_edge.runtime.device.run_stop import RunStop
from paligemma_edge.runtime.engine.engine import Engine, Tensor
from paligemma_edge.runtime.images.batch import ImageBatch
from paligemma_edge.runtime.timing import Stopwatch

_KEPT_BYTES = 64 << 20  # of features: 32 images of PaliGemma-3B at 224, 2 at 896


@dataclass(frozen=True, eq=False)
class ImageFeatureCache:
    """Encodes and projects images, and keeps what it made of the latest ones.

    Threads may share it: one encodes an image, the others wait for its features.
    """

    engine: Engine
    kept: dict[bytes, Tensor] = field(default_factory=dict)  # by digest, the oldest first
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def features(self, images: ImageBatch, watch: Stopwatch, stop: RunStop | None = None) -> Tensor:
        """Features [images, N, hidden]; `watch` gets the seconds of making them, if they are.

        `stop` lets another thread end that.
        """
        with self._lock:
            features = self.kept.pop(images.digest, None)
            if features is None:
                features = self._encode(images.pixel_values, watch, stop)
            self.kept[images.digest] = features
            size = itemsize(self.engine.dtype) * int(np.prod(features.shape()))
            most = max(1, _KEPT_BYTES // size)
            while len(self.kept) > most:
                del self.kept[next(iter(self.kept))]
            return features

    def _encode(
        self, pixels: NDArray[np.float32], watch: Stopwatch, stop: RunStop | None
    ) -> Tensor:
        with watch.measure("vision"):
            hidden = self.engine.encode(pixels, stop)
        with watch.measure("projector"):
            return self.engine.project(hidden, stop)
