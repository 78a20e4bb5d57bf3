"""Whatever a decoder raises about one file, as that file's error: no single file ends a run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from paligemma_edge.runtime.errors import ImageError, PaliGemmaError
from paligemma_edge.runtime.images.load import image_label
from paligemma_edge.runtime.printable import short_line

_SHOWN = 100  # characters of a reason


@contextlib.contextmanager
def as_image_errors(name: str, wanted: str = "wanted an image") -> Iterator[None]:
    """Raise any error but ours as an ImageError about the file of this name."""
    label = image_label(name)
    try:
        yield
    except PaliGemmaError:
        raise
    except MemoryError:
        raise ImageError(f"{label}: not enough memory to read it; make it smaller") from None
    except Exception as error:  # decoders raise any class, with texts that are not for users
        told = getattr(error, "strerror", None)  # of the system and of FFmpeg
        reason = short_line(told if isinstance(told, str) else type(error).__name__, _SHOWN)
        raise ImageError(f"{label}: cannot be read ({reason}), {wanted}") from None
