"""An image from a path, bytes, a file, an array or PIL, as RGB.

Knows files, bytes, arrays and Pillow's modes, and refuses what it cannot read exactly. Knows
nothing of the model.
"""

from __future__ import annotations

import contextlib
import os
import threading
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, TypeAlias, TypeGuard

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile

from paligemma_edge.runtime.errors import ImageError
from paligemma_edge.runtime.images.decoding_work import excessive_work
from paligemma_edge.runtime.images.formats import WANTED, ImageFormat, describe, format_of
from paligemma_edge.runtime.images.png_chunks import without_unused_chunks
from paligemma_edge.runtime.images.quiet_tiff import quiet_tiff
from paligemma_edge.runtime.printable import short_line
from paligemma_edge.runtime.validation import check_pixels

ImageInput: TypeAlias = str | os.PathLike[str] | bytes | BinaryIO | NDArray[np.uint8] | Image.Image

MAX_PIXELS = 1 << 28  # 16,384 x 16,384; phones reach 200 million
MAX_SIDE = 65_535  # JPEG's own; the filter of a longer side alone would take gigabytes
MAX_FILE_BYTES = 512 << 20

_SHOWN = 100  # characters of a name
_WANTED_ARRAY = "wanted uint8 [height, width, 3] with values from 0 to 255"
_DAMAGED = "damaged or cut short"
_ALPHA_MODES = ("LA", "PA", "RGBA", "RGBa")
_BAND = 1 << 20  # pixels that are blended at a time
_KEEP_DECODER = ("WEBP", "AVIF")  # their images hold the decoder, which is larger than the pixels
# EXIF's orientation → how such an image is turned upright.
_TURNS: Mapping[int, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# `catch_warnings` changes the whole process: two threads at once would leave the filters changed.
# Only headers and EXIF are read under it, whose work is bounded; any number of threads decode.
_FILTERS = threading.Lock()


def load_image(source: ImageInput, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read an image as RGB, as transformers' processor does except for 16-bit grey.

    A file is turned upright as its EXIF orientation says; an array or a PIL image is taken as
    given, since its caller may have turned it already. Transparent pixels are blended with white,
    and 16-bit grey is scaled by dropping the low byte (transformers clips it). Threads may call
    it at once.

    Args:
        source: a path, the bytes of a file (JPEG, PNG, WebP, BMP, GIF, TIFF or AVIF; the first
            frame or page), a file that is open for reading in binary mode and is read from where
            it stands to its end, a PIL image, or a uint8 array: [height, width] is grey,
            [height, width, 3] red, green and blue, a fourth channel alpha.
        max_pixels: largest accepted width x height; a larger image is not decoded. An RGB file
            takes about 4 bytes a pixel while it is read, a turned one 8, AVIF and progressive
            JPEG 10, WebP 16.

    Returns:
        An RGB image of its own that holds pixels only: no EXIF, no other metadata.

    Raises:
        ImageError: the image cannot be read, is too large, or asks its decoder for too much.

    Example:
        >>> load_image("street.jpg").size
        (1280, 720)
    """
    label, max_pixels = image_label(source), check_pixels("max_pixels", max_pixels)
    if isinstance(source, Image.Image):
        return _given(source, label, max_pixels)
    if isinstance(source, np.ndarray):
        return _given(_from_array(source, label), label, max_pixels)
    return _decoded(_bytes_of(source, label), label, max_pixels)


def image_label(source: object) -> str:
    """The name of an image in messages, in one short line."""
    if isinstance(source, str | os.PathLike):
        return short_line(os.fsdecode(source), _SHOWN) or "''"
    if _is_file(source):
        named: object = getattr(source, "name", None)
        return image_label(named) if isinstance(named, str) else "the given file"
    names = {bytes: "bytes", np.ndarray: "array", Image.Image: "image"}
    kinds = [name for kind, name in names.items() if isinstance(source, kind)]
    return f"the given {kinds[0] if kinds else type(source).__name__}"


def _given(image: Image.Image, label: str, max_pixels: int) -> Image.Image:
    """A copy of an image that a caller has, in RGB."""
    _check_size(image, label, max_pixels)
    with _as_image_errors(image, label):
        rgb = _on_white(_without_16_bits(image, label)).convert("RGB")
    rgb.info = {}
    return rgb


def _bytes_of(source: object, label: str) -> bytes:
    if isinstance(source, bytes):
        return source
    if isinstance(source, str | os.PathLike):
        return _read(Path(os.fsdecode(source)), label)
    if _is_file(source):
        return _read_open(source, label)
    raise ImageError(
        f"{label}: not an image; wanted a path, bytes, a binary file, a uint8 array or a PIL image"
    )


def _is_file(source: object) -> TypeGuard[BinaryIO]:
    return callable(getattr(source, "read", None)) and not isinstance(source, type)


def _read(path: Path, label: str) -> bytes:
    try:
        if path.is_dir():
            raise ImageError(f"{label}: a folder, {WANTED}; name one file")
        if not path.is_file():
            if path.exists():
                raise ImageError(f"{label}: a pipe, socket or device, wanted a regular file")
            raise ImageError(f"{label}: no such file; check the path (addresses are not fetched)")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ImageError(f"{label}: more than {MAX_FILE_BYTES >> 20} MiB, {WANTED}")
        return path.read_bytes()
    except ImageError:
        raise
    except OSError as error:
        raise ImageError(f"{label}: cannot be read ({error.strerror}); check the file") from None


def _read_open(file: BinaryIO, label: str) -> bytes:
    """The rest of a file that is open, not more of it than a file may have."""
    try:
        data: object = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:  # such as of a file that was closed
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ImageError(f"{label}: cannot be read ({reason[:80]}); open it again") from None
    if not isinstance(data, bytes):
        kind = type(data).__name__
        raise ImageError(f"{label}: its read() gave {kind}, wanted bytes; open it with mode 'rb'")
    if len(data) > MAX_FILE_BYTES:
        raise ImageError(f"{label}: more than {MAX_FILE_BYTES >> 20} MiB, {WANTED}")
    return data


def _decoded(data: bytes, label: str, max_pixels: int) -> Image.Image:
    """The image of a file, upright; the large parts are held no longer than they are needed."""
    kind = format_of(data)
    if kind is None:
        raise ImageError(f"{label}: {describe(data)}, {WANTED}")
    if problem := excessive_work(kind.name, data):
        raise ImageError(f"{label}: {problem}; save the image again")
    image = _with_header(kind, data, label)
    del data
    _check_size(image, label, max_pixels)
    with _as_image_errors(image, label):
        image.load()
        turn = _TURNS.get(_orientation(image))
        upright = _alone(_on_white(_without_16_bits(image, label)))
        del image
        return upright if turn is None else upright.transpose(turn)


def _with_header(kind: ImageFormat, data: bytes, label: str) -> Image.Image:
    """An image whose pixels are not decoded yet."""
    with _without_warnings():
        try:
            if kind.name == "TIFF":
                quiet_tiff()
            image = kind.open(without_unused_chunks(data) if kind.name == "PNG" else data)
            if kind.name == "TIFF":  # whose `load` would warn of what these say
                exif = image.getexif()
                for table in ExifTags.IFD:
                    exif.get_ifd(table)
        except MemoryError:
            raise ImageError(f"{label}: not enough memory to read it; make it smaller") from None
        except Image.DecompressionBombError:
            raise ImageError(_beyond_pillow(label)) from None
        except Exception:  # decoders raise any class, with texts that are not for users
            raise ImageError(f"{label}: {_DAMAGED}, {WANTED}") from None
    return image


def _from_array(array: NDArray[np.uint8], label: str) -> Image.Image:
    shape = list(array.shape)
    if array.dtype != np.uint8:
        raise ImageError(f"{label}: {array.dtype} {shape}, {_WANTED_ARRAY}; scale and convert it")
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))):
        raise ImageError(f"{label}: shape {shape}, {_WANTED_ARRAY}; move the channels to the end")
    if not array.size:
        raise ImageError(f"{label}: empty, shape {shape}, {_WANTED_ARRAY}")
    grey = array.ndim == 3 and array.shape[2] == 1
    return Image.fromarray(array[..., 0] if grey else array)


def _check_size(image: Image.Image, label: str, max_pixels: int) -> None:
    width, height = image.size
    if not width * height:
        raise ImageError(f"{label}: empty ({width} x {height}), wanted at least one pixel")
    if width * height > max_pixels or max(width, height) > MAX_SIDE:
        raise ImageError(
            f"{label}: {width} x {height} pixels, wanted at most {max_pixels} in all "
            f"and {MAX_SIDE} a side; make the image smaller"
        )


def _beyond_pillow(label: str) -> str:
    """Of an image that Pillow compares with its own limit, whatever `max_pixels` is."""
    most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
    return f"{label}: more pixels than the {most} that Pillow reads of it; make the image smaller"


@contextlib.contextmanager
def _as_image_errors(image: Image.Image, label: str) -> Iterator[None]:
    size = f"{image.width} x {image.height}"
    try:
        yield
    except ImageError:
        raise
    except MemoryError:
        raise ImageError(f"{label}: not enough memory for {size} pixels; make it smaller") from None
    except Image.DecompressionBombError:
        raise ImageError(_beyond_pillow(label)) from None
    except Exception:  # as in _with_header
        raise ImageError(f"{label}: {_DAMAGED}, {WANTED}") from None


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 to 8; damaged EXIF says nothing. Pillow itself turns a TIFF."""
    with _without_warnings():
        try:
            value = image.getexif().get(ExifTags.Base.Orientation, 1)
        except MemoryError:
            raise
        except Exception:  # any class, as decoders raise it
            return 1
    return value if isinstance(value, int) else 1


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    with _FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _without_16_bits(image: Image.Image, label: str) -> Image.Image:
    """Pillow itself clips 16-bit grey to 255; of 16-bit colour it drops the low byte, as here."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ImageError(
            f"{label}: mode {image.mode}, whose range is not known, wanted 8 bits a channel; "
            "scale it to 0..255 and convert it to mode L"
        )
    return image


def _on_white(image: Image.Image) -> Image.Image:
    """An image without transparency; band by band, for blending takes 16 bytes a pixel."""
    if image.mode not in _ALPHA_MODES and image.info.get("transparency") is None:
        return image
    width, height = image.size
    rgb, rows = Image.new("RGB", image.size), max(1, _BAND // width)
    for top in range(0, height, rows):
        box = (0, top, width, min(top + rows, height))
        # A crop; `crop` would compare it with Pillow's own limit.
        band = image.resize((width, box[3] - top), Image.Resampling.NEAREST, box).convert("RGBA")
        white = Image.new("RGBA", band.size, (255, 255, 255, 255))
        rgb.paste(Image.alpha_composite(white, band).convert("RGB"), box)
    return rgb


def _alone(image: Image.Image) -> Image.Image:
    """A decoded image in RGB, without its file and all else that the file said."""
    if image.mode != "RGB" or image.format in _KEEP_DECODER:
        image = image.convert("RGB")
    if isinstance(image, ImageFile.ImageFile):
        with _without_warnings():  # it looks at each entry
            image.getexif().clear()
        image.fp = None
    image.info = {}
    return image
