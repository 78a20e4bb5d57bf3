"""What stands beside the pixels of a PNG keeps it from nothing and changes no pixel."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from PIL import Image

from paligemma_edge.runtime.errors import ImageError
from paligemma_edge.runtime.images.load import load_image
from paligemma_edge.runtime.images.png_chunks import without_unused_chunks
from tests.helpers.image_files import encoded, png_chunk, tags

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
PNG = encoded(Image.fromarray(PIXELS), "PNG")
LARGE = b"x" * (70 << 20)  # Pillow reads 64 MiB of text, of which 1 MiB in one that was compressed
PACKED = zlib.compress(LARGE)
XMP = b'<x:xmpmeta tiff:Orientation="6"/>'
EXIF = "\n".join(("", "exif", "26", tags([(0x0112, 3, 1, 6)]).hex())).encode()  # as ImageMagick's

UNUSED = {
    "a long text": (b"tEXt", b"Comment\0", LARGE),
    "a compressed text": (b"zTXt", b"Comment\0\0", PACKED),
    "an international text": (b"iTXt", b"Comment\0\0\0en\0\0", LARGE),
    "a compressed international text": (b"iTXt", b"Comment\0\1\0en\0\0", PACKED),
    "a text called as Pillow's transparency": (b"tEXt", b"transparency\0", b"none"),
    "a text called as Pillow's interlacing": (b"tEXt", b"interlace\0", b"no"),
    "a text called as Pillow's box of a frame": (b"zTXt", b"bbox\0\0", zlib.compress(b"1")),
}
TURNING = {
    "EXIF as text": (b"tEXt", b"Raw profile type exif\0", EXIF),
    "compressed EXIF": (b"zTXt", b"Raw profile type exif\0\0", zlib.compress(EXIF)),
    "XMP": (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0", XMP),
    "compressed XMP": (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0", zlib.compress(XMP)),
}


def with_text(kind: bytes, name: bytes, text: bytes, *, before: bytes = b"IDAT") -> bytes:
    place = PNG.rindex(before) - 4
    return PNG[:place] + png_chunk(kind, name + text) + PNG[place:]


@pytest.mark.parametrize("before", [b"IDAT", b"IEND"])
@pytest.mark.parametrize("name", UNUSED)
def test_texts_are_left_out(name: str, before: bytes) -> None:
    data = with_text(*UNUSED[name], before=before)
    assert np.array_equal(np.asarray(load_image(data)), PIXELS)
    assert without_unused_chunks(data) == PNG


@pytest.mark.parametrize("size", [500, 70 << 20])
def test_colour_profiles_are_left_out(size: int) -> None:
    data = with_text(b"iCCP", b"printer\0\0", zlib.compress(LARGE[:size]))
    assert np.array_equal(np.asarray(load_image(data)), PIXELS)


@pytest.mark.parametrize("before", [b"IDAT", b"IEND"])
@pytest.mark.parametrize("name", TURNING)
def test_texts_that_hold_the_orientation_are_kept(name: str, before: bytes) -> None:
    upright = np.rot90(PIXELS, -1)  # EXIF's 6: the first row is the right side
    assert np.array_equal(np.asarray(load_image(with_text(*TURNING[name], before=before))), upright)


def test_a_file_without_texts_is_not_copied() -> None:
    assert without_unused_chunks(PNG) is PNG


def test_a_text_that_is_cut_short_is_told() -> None:
    data = with_text(*UNUSED["a compressed text"])
    with pytest.raises(ImageError, match="damaged or cut short"):
        load_image(data[: data.index(b"zTXt") + 1000])
