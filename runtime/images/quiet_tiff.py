"""What TIFF is decoded with writes to the terminal by itself; an error says the same with the file.

Pillow silences libtiff's warnings in the whole process, and raises an error for each of its errors.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging

from PIL import _imaging

_PILLOW = logging.getLogger("PIL")


def quiet_tiff() -> None:
    """Let libtiff and Pillow write nothing to standard error, in the whole process.

    Where the program has set up logging, Pillow's records go there as before. A Pillow that hides
    the functions of its libtiff keeps it as it is.
    """
    if not _PILLOW.hasHandlers():
        _PILLOW.addHandler(logging.NullHandler())
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(_imaging.__file__)  # also finds what that is linked with
        library.TIFFSetErrorHandler(None)
