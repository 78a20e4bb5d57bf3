"""The library that Pillow decodes TIFF with, which writes to the terminal by itself."""

from __future__ import annotations

import contextlib
import ctypes

from PIL import _imaging


def silence_libtiff() -> None:
    """Let libtiff write nothing to standard error, in the whole process.

    Pillow itself silences libtiff's warnings so, and raises an error for each of its errors. A
    Pillow that hides the library's functions keeps it as it is.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(_imaging.__file__)  # also finds what that is linked with
        library.TIFFSetErrorHandler(None)
