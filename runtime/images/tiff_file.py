"""A TIFF as Pillow reads it, without Pillow's own limit of pixels, which belongs to the process."""

from __future__ import annotations

from PIL import _imaging
from PIL.TiffImagePlugin import TiffImageFile


class TiffFile(TiffImageFile):
    """Its size is compared with the limit that a caller gave, as that of other formats is."""

    def load_prepare(self) -> None:
        """Make the image that is decoded into; Pillow compares sizes where there is none yet."""
        if self._im is None:
            self.im = _imaging.new(self.mode, self._tile_size)
        super().load_prepare()
