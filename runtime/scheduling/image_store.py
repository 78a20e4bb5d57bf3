"""Images as the model sees them, known by their content, so that they are sent and read once.

Ids cannot be guessed: they are made with a secret of this process. Knows nothing of requests.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
from dataclasses import dataclass, field

from paligemma_edge.runtime.images.batch import ImageBatch, ImageReader
from paligemma_edge.runtime.timing import Stopwatch

MAX_BYTES = 256 << 20  # of pixel values: 445 images at 224, 27 at 896
_ID_DIGITS = 32


@dataclass(frozen=True, eq=False)
class StoredImage:
    """An image that was read, and its id, such as "img_0f3a…"."""

    id: str
    batch: ImageBatch  # of this image alone


@dataclass(frozen=True, eq=False)
class ImageStore:
    """The latest images, at most `max_bytes` of pixel values; threads may share it."""

    reader: ImageReader
    max_bytes: int = MAX_BYTES
    _kept: dict[str, StoredImage] = field(default_factory=dict)  # the oldest first
    _secret: bytes = field(default_factory=lambda: secrets.token_bytes(32))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, encoded: bytes) -> StoredImage:
        """Read the bytes of a file, unless they were read lately; ImageError where they cannot be.

        It takes as long as decoding does: call it in a thread.
        """
        digest = hashlib.sha256(encoded).digest()
        image_id = f"img_{hmac.new(self._secret, digest, 'sha256').hexdigest()[:_ID_DIGITS]}"
        stored = self.get(image_id)
        if stored is None:
            stored = StoredImage(image_id, self.reader.read([encoded], Stopwatch()))
            self._keep(stored)
        return stored

    def get(self, image_id: str) -> StoredImage | None:
        """An image that is still kept, which makes it the latest; None for any other id."""
        with self._lock:
            stored = self._kept.pop(image_id, None)
            if stored is not None:
                self._kept[image_id] = stored
            return stored

    def _keep(self, stored: StoredImage) -> None:
        with self._lock:
            self._kept[stored.id] = stored
            while sum(map(_size, self._kept.values())) > self.max_bytes and len(self._kept) > 1:
                del self._kept[next(iter(self._kept))]


def _size(stored: StoredImage) -> int:
    return stored.batch.pixel_values.nbytes
