"""An image from a path, bytes, a file, an array or PIL, as upright RGB.

Knows files, bytes, arrays and Pillow's modes, and refuses what it cannot read exactly. Knows
nothing of the model.
"""

from __future__ import annotations

import os
import threading
import warnings
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, TypeAlias, TypeGuard

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from paligemma_edge.runtime.errors import ImageError

ImageInput: TypeAlias = str | os.PathLike[str] | bytes | BinaryIO | NDArray[np.uint8] | Image.Image

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
MAX_PIXELS = 40_000_000
MAX_SIDE = 65_535  # JPEG's own; the filter of a longer side alone would take gigabytes
MAX_FILE_BYTES = 512 << 20

_WANTED = "wanted a JPEG, PNG, WebP or BMP image"
_WANTED_ARRAY = "wanted uint8 [height, width, 3] with values from 0 to 255"
_UPRIGHT = 1  # EXIF's orientation of an image that is not to be turned
_ALPHA_MODES = ("LA", "PA", "RGBA", "RGBa")
_DAMAGED = "damaged or cut short"
_KINDS = (
    (b"\xff\xd8", _DAMAGED),
    (b"\x89PNG", _DAMAGED),
    (b"RIFF", _DAMAGED),
    (b"BM", _DAMAGED),
    (b"GIF8", "a GIF image"),
    (b"II*\0", "a TIFF image"),
    (b"MM\0*", "a TIFF image"),
    (b"%PDF", "a PDF document"),
    (b"<", "a text in XML or HTML"),
)


# `catch_warnings` changes the whole process: two threads at once would leave the filters changed.
_FILTERS = threading.Lock()


def load_image(source: ImageInput, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read an image as upright RGB, as transformers' processor does except for 16-bit grey.

    The EXIF orientation is applied, transparent pixels are blended with white, and 16-bit grey
    is scaled by dropping the low byte (transformers clips it). Threads may call it at once; they
    wait for each other.

    Args:
        source: a path, the bytes of a file (JPEG, PNG, WebP or BMP; the first frame of an
            animation), a file that is open for reading in binary mode and is read from where it
            stands to its end, a PIL image, or a uint8 array: [height, width] is grey,
            [height, width, 3] red, green and blue, a fourth channel alpha.
        max_pixels: largest accepted width x height; a larger image is not decoded.

    Returns:
        A new RGB image that holds pixels only: no EXIF, no other metadata.

    Raises:
        ImageError: the image cannot be read, or is too large.

    Example:
        >>> load_image("street.jpg").size
        (1280, 720)
    """
    label = image_label(source)
    with _FILTERS, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        image = _open(source, label)
        _check_size(image, label, max_pixels)
        return _as_rgb(image, label)


def image_label(source: object) -> str:
    """The name of an image in messages, in one line of at most 100 characters."""
    if isinstance(source, str | os.PathLike):
        name = os.fsdecode(source)
        name = name if name.isprintable() and name else repr(name)
        return name if len(name) <= 100 else f"{name[:48]}...{name[-48:]}"
    if _is_file(source):
        named: object = getattr(source, "name", None)
        return image_label(named) if isinstance(named, str) else "the given file"
    names = {bytes: "bytes", np.ndarray: "array", Image.Image: "image"}
    kinds = [name for kind, name in names.items() if isinstance(source, kind)]
    return f"the given {kinds[0] if kinds else type(source).__name__}"


def _open(source: ImageInput, label: str) -> Image.Image:
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, np.ndarray):
        return _from_array(source, label)
    if isinstance(source, bytes):
        return _decode_header(source, label)
    if isinstance(source, str | os.PathLike):
        return _decode_header(_read(Path(os.fsdecode(source)), label), label)
    if _is_file(source):
        return _decode_header(_read_open(source, label), label)
    raise ImageError(
        f"{label}: not an image; wanted a path, bytes, a binary file, a uint8 array or a PIL image"
    )


def _is_file(source: object) -> TypeGuard[BinaryIO]:
    return callable(getattr(source, "read", None)) and not isinstance(source, type)


def _read(path: Path, label: str) -> bytes:
    try:
        if path.is_dir():
            raise ImageError(f"{label}: a folder, {_WANTED}; name one file")
        if not path.is_file():
            raise ImageError(f"{label}: no such file; check the path (addresses are not fetched)")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ImageError(f"{label}: more than {MAX_FILE_BYTES >> 20} MiB, {_WANTED}")
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
        raise ImageError(f"{label}: more than {MAX_FILE_BYTES >> 20} MiB, {_WANTED}")
    return data


def _decode_header(data: bytes, label: str) -> Image.Image:
    """Read the header only, so that an image that is too large is never decoded."""
    try:
        return Image.open(BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise ImageError(
            f"{label}: more than {Image.MAX_IMAGE_PIXELS} pixels; make the image smaller"
        ) from None
    except Exception:  # decoders raise any class, with texts that are not for users
        raise ImageError(f"{label}: {_kind(data)}, {_WANTED}") from None


def _kind(data: bytes) -> str:
    if not data:
        return "empty"
    if data[4:8] == b"ftyp":
        return "a HEIF or AVIF image, or a video"
    kinds = [kind for magic, kind in _KINDS if data.startswith(magic)]
    return kinds[0] if kinds else "not an image that can be read"


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


def _as_rgb(image: Image.Image, label: str) -> Image.Image:
    try:
        image.load()
        rgb = _on_white(_without_16_bits(_upright(image), label))
    except ImageError:
        raise
    except MemoryError:
        raise ImageError(
            f"{label}: not enough memory for {image.width} x {image.height} pixels; make it smaller"
        ) from None
    except Exception:  # as in _decode_header
        raise ImageError(f"{label}: {_DAMAGED}, {_WANTED}") from None
    rgb.info = {}
    return rgb


def _upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF orientation says, whatever its other metadata holds."""
    orientation = _orientation(image)
    if orientation == _UPRIGHT:
        return image
    from PIL import ImageOps  # with all of Pillow's palettes, and most images are upright

    # Pillow writes all EXIF back, and fails where a field is damaged: it gets this one alone.
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    copy = image.copy()
    copy.info = {key: value for key, value in image.info.items() if key == "transparency"}
    copy.info["exif"] = exif.tobytes()
    ImageOps.exif_transpose(copy, in_place=True)
    return copy


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 to 8; damaged EXIF says nothing."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, _UPRIGHT)
    except MemoryError:
        raise
    except Exception:  # any class, as decoders raise it
        return _UPRIGHT
    return value if value in range(1, 9) else _UPRIGHT


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
    if image.mode in _ALPHA_MODES or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
