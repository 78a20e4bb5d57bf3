"""The formats of images that are read: first bytes, endings of names, decoders.

Each opens one decoder of Pillow, and only when such a file comes. GIF and AVIF are the first frame
of an animation, TIFF is its first page: folders from the web and from machine vision are full of
them, and their decoders are bounded like the others. HEIF, PDF, SVG and camera raw files need more
than Pillow, and are refused with their names.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

from PIL import ImageFile

WANTED = "wanted a JPEG, PNG, WebP, BMP, GIF, TIFF or AVIF image"


@dataclass(frozen=True)
class ImageFormat:
    """A format that is read."""

    name: str  # as Pillow calls it
    suffixes: tuple[str, ...]  # endings of names, in lower case
    magics: tuple[tuple[int, bytes], ...]  # of which one stands at its place in the file
    module: str
    decoder: str

    def matches(self, data: bytes) -> bool:
        """Whether a file begins as one of this format."""
        return any(data[at : at + len(magic)] == magic for at, magic in self.magics)

    def open(self, data: bytes) -> ImageFile.ImageFile:
        """Read the header; any exception where it is damaged.

        `Image.open` would compare the size with Pillow's own limit, which belongs to the process;
        the decoders of WebP and GIF do so themselves.
        """
        decoder: type[ImageFile.ImageFile] = getattr(
            importlib.import_module(self.module), self.decoder
        )
        return decoder(BytesIO(data))


FORMATS: Sequence[ImageFormat] = (
    ImageFormat(
        "JPEG",
        (".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jfi", ".pjpeg", ".pjp", ".mpo"),
        ((0, b"\xff\xd8\xff"),),
        "PIL.JpegImagePlugin",
        "JpegImageFile",
    ),
    ImageFormat(
        "PNG",
        (".png", ".apng"),
        ((0, b"\x89PNG\r\n\x1a\n"),),
        "PIL.PngImagePlugin",
        "PngImageFile",
    ),
    ImageFormat("WEBP", (".webp",), ((8, b"WEBP"),), "PIL.WebPImagePlugin", "WebPImageFile"),
    ImageFormat("BMP", (".bmp", ".dib"), ((0, b"BM"),), "PIL.BmpImagePlugin", "BmpImageFile"),
    ImageFormat("GIF", (".gif",), ((0, b"GIF8"),), "PIL.GifImagePlugin", "GifImageFile"),
    ImageFormat(
        "TIFF",
        (".tif", ".tiff"),
        ((0, b"II*\0"), (0, b"MM\0*"), (0, b"II+\0"), (0, b"MM\0+")),
        "paligemma_edge.runtime.images.tiff_file",
        "TiffFile",
    ),
    ImageFormat(
        "AVIF",
        (".avif", ".avifs"),
        ((4, b"ftypavif"), (4, b"ftypavis"), (4, b"ftypmif1"), (4, b"ftypmsf1")),
        "PIL.AvifImagePlugin",
        "AvifImageFile",
    ),
)
IMAGE_SUFFIXES = tuple(suffix for one in FORMATS for suffix in one.suffixes)

_OTHERS = (
    (b"RIFF", "a RIFF file that is not WebP"),
    (b"%PDF", "a PDF document"),
    (b"<", "a text in XML or HTML"),
    (b"version https://git-lfs", "a pointer of Git LFS; run `git lfs pull` where it was cloned"),
)


def format_of(data: bytes) -> ImageFormat | None:
    """The format that the first bytes of a file show."""
    return next((one for one in FORMATS if one.matches(data)), None)


def format_of_name(name: str) -> ImageFormat | None:
    """The format that the ending of a file's name promises."""
    suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 - of a name as it was given
    return next((one for one in FORMATS if suffix in one.suffixes), None)


def describe(data: bytes) -> str:
    """What a file is that is of none of the formats, as far as its first bytes tell."""
    if not data:
        return "empty"
    if data[4:8] == b"ftyp":
        return "a HEIF image or a video"
    kinds = [kind for magic, kind in _OTHERS if data.startswith(magic)]
    return kinds[0] if kinds else "not an image that can be read"
