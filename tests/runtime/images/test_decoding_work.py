"""Files that ask a decoder for too much, and those of cameras and programs, which do not."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from paligemma_edge.runtime.errors import ImageError
from paligemma_edge.runtime.images.decoding_work import excessive_work
from paligemma_edge.runtime.images.formats import FORMATS, format_of
from paligemma_edge.runtime.images.load import load_image
from tests.helpers.image_files import encoded, jpeg_of_scans, png_chunk, tags

XMP = b"XML:com.adobe.xmp\0"
PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))


def gif_with_comment(size: int) -> bytes:
    data = encoded(Image.new("P", (3, 3)), "GIF")
    comment = b"!\xfe" + (b"\xff" + b"x" * 255) * (size // 255) + b"\0"
    return data[: data.index(b",")] + comment + data[data.index(b",") :]


def png_of_chunks(kind: bytes, count: int) -> bytes:
    data = encoded(PHOTO, "PNG")
    place = data.index(b"IDAT") - 4
    return data[:place] + png_chunk(kind, b"") * count + data[place:]


def many_numbers(tag: int = 0x0112, at: int = 26) -> bytes:
    """EXIF whose orientation, or another tag, is two million numbers."""
    return tags([(tag, 3, 2_000_000, at)], rest=bytes(4_000_000))


def png_with(kind: bytes, content: bytes) -> bytes:
    data = encoded(PHOTO, "PNG")
    place = data.index(b"IDAT") - 4
    return data[:place] + png_chunk(kind, content) + data[place:]


def webp_with_exif(exif: bytes) -> bytes:
    data = encoded(PHOTO, "WEBP", exif=b"Exif\0\0" + tags([]))
    place = data.index(b"EXIF")
    body = data[12:place] + b"EXIF" + struct.pack("<I", len(exif)) + exif
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def tiff_of_jpegs(jpeg: bytes, side: int, tile: int, step: int = 0) -> bytes:
    """A TIFF all of whose tiles are a JPEG, or begin `step` bytes after the one before."""
    count = (side // tile) ** 2
    place = 8 + 2 + 12 * 10 + 4
    entries = [
        *((256, 4, 1, side), (257, 4, 1, side), (258, 3, 1, 8), (259, 3, 1, 7)),
        *((262, 3, 1, 2), (277, 3, 1, 3), (322, 4, 1, tile), (323, 4, 1, tile)),
        (324, 4, count, place if count > 1 else place + 8),
        (325, 4, count, place + 4 * count if count > 1 else len(jpeg)),
    ]
    start = place + 8 * count
    numbers = [start + step * number for number in range(count)] + [len(jpeg)] * count
    return tags(entries, rest=struct.pack(f"<{2 * count}I", *numbers) + jpeg)


def bmp_of_runs(runs: int) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, 2000, 2000, 1, 8, 1, 0, 0, 0, 256, 0)
    start = 14 + len(header) + 1024
    body = header + bytes(1024) + b"\x01\x07" * runs
    return b"BM" + struct.pack("<IHHI", start + 2 * runs, 0, 0, start) + body


EXCESSIVE = {
    "a JPEG of 1,000 scans": (jpeg_of_scans(1000), "more than 100 scans"),
    "few scans over very many pixels": (
        jpeg_of_scans(90).replace(b"\0\x40\0\x40", b"\x40\0\x40\0", 1),
        "90 scans over 268,435,456 pixels",
    ),
    "a JPEG of very many segments": (
        b"\xff\xd8" + b"\xff\xfe\0\x02" * 10_001 + encoded(PHOTO, "JPEG")[2:],
        "very many segments",
    ),
    "a JPEG with junk between its segments": (
        b"\xff\xd8\xff\xfe\0\x02" + bytes(1 << 17) + encoded(PHOTO, "JPEG")[2:],
        "very many segments",
    ),
    "a PNG of empty chunks": (png_of_chunks(b"teXt", 40_000), "more than 20,"),
    "a PNG of empty pixel chunks": (png_of_chunks(b"IDAT", 40_000), "more than 20,"),
    "compressed XMP of a PNG": (
        png_with(b"iTXt", XMP + b"\1\0\0\0" + zlib.compress(bytes(2 << 20))),
        "more than 64 MiB of EXIF or XMP as text, or 1 MiB where it is compressed",
    ),
    "compressed EXIF of a PNG": (
        png_with(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(bytes(2 << 20))),
        "more than 64 MiB of EXIF or XMP as text, or 1 MiB where it is compressed",
    ),
    "XMP of a PNG": (
        png_with(b"iTXt", XMP + b"\0\0\0\0" + bytes(65 << 20)),
        "more than 64 MiB of EXIF or XMP as text",
    ),
    "a GIF with a long comment": (gif_with_comment(2 << 20), "before its first frame"),
    "a BMP of short runs": (bmp_of_runs(5 << 20), "run-length encoded"),
    "a JPEG of very much EXIF": (
        b"\xff\xd8"
        + (b"\xff\xe1\xff\xffExif\0\0" + bytes(65_527)) * 100
        + encoded(PHOTO, "JPEG")[2:],
        "more than 4 MiB of EXIF",
    ),
    "EXIF of a PNG": (png_with(b"eXIf", many_numbers()), "more than 1,000,000 numbers"),
    "EXIF of a WebP": (webp_with_exif(many_numbers()), "more than 1,000,000 numbers"),
    "EXIF of an AVIF": (encoded(PHOTO, "AVIF") + many_numbers(), "more than 1,000,000 numbers"),
    "a TIFF whose tiles are all one JPEG of many scans": (
        tiff_of_jpegs(jpeg_of_scans(99, side=1024), side=8192, tile=1024),
        "JPEGs, of 99 scans and at least 6,643,777,536 pixels in all scans",
    ),
    "a TIFF whose very small tiles are one JPEG of some scans": (
        tiff_of_jpegs(jpeg_of_scans(31, side=16), side=4096, tile=16),
        "JPEGs, of 31 scans",
    ),
    "a TIFF whose tiles are JPEGs of very many scans": (
        tiff_of_jpegs(jpeg_of_scans(101), side=64, tile=64),
        "a TIFF that holds a JPEG of more than 100 scans",
    ),
    "a TIFF whose tiles overlap": (
        tiff_of_jpegs(jpeg_of_scans(9) * 4, side=1024, tile=64, step=1),
        "a TIFF whose tiles overlap",
    ),
    "a TIFF of few pixels in very large tiles": (
        tags([(256, 4, 1, 16), (257, 4, 1, 1), (322, 4, 1, 16_384), (323, 4, 1, 16_384)]),
        "a TIFF of 16 x 1 pixels in tiles of 16384 x 16384, wanted smaller tiles",
    ),
    "a TIFF of very many strips": (many_numbers(273), "more than 1,000,000 numbers"),
    "a TIFF whose child table has very many numbers": (
        tags([(34665, 4, 1, 26)], rest=many_numbers()[8:]),
        "more than 1,000,000 numbers",
    ),
}


@pytest.mark.parametrize("name", EXCESSIVE)
def test_what_asks_for_too_much_is_refused_before_it_is_decoded(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, problem = EXCESSIVE[name]
    kind = format_of(data)
    assert kind is not None
    monkeypatch.setattr(type(kind), "open", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(ImageError, match=problem) as caught:
        load_image(data)
    assert str(caught.value).endswith("; save the image again")


@pytest.mark.parametrize("kind", [one.name for one in FORMATS])
def test_what_programs_write_is_read(kind: str) -> None:
    data = encoded(PHOTO, kind)
    assert excessive_work(kind, data) is None
    wanted = Image.open(io.BytesIO(data)).convert("RGB")
    assert load_image(data).tobytes() == wanted.tobytes()


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_progressive_jpeg_is_read(mode: str) -> None:
    data = encoded(PHOTO.convert(mode), "JPEG", progressive=True, quality=95)
    assert data.count(b"\xff\xda") >= 6
    assert load_image(data).tobytes() == Image.open(io.BytesIO(data)).convert("RGB").tobytes()


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("tile", [64, 16])
def test_a_tiff_of_jpegs_is_read(tile: int, *, progressive: bool) -> None:
    """libtiff has a JPEG in each tile; where all are one, so are the pixels of the tiles."""
    part = PHOTO.crop((0, 0, tile, tile))
    jpeg = encoded(part, "JPEG", progressive=progressive, quality=95, subsampling=0, keep_rgb=True)
    data = tiff_of_jpegs(jpeg, 128, tile)
    wanted = np.tile(np.asarray(Image.open(io.BytesIO(jpeg))), (128 // tile, 128 // tile, 1))
    assert np.array_equal(np.asarray(load_image(data)), wanted)


@pytest.mark.parametrize(
    "options", [{}, {"strip_size": 3000 * 3 * 16}], ids=["one strip", "strips"]
)
def test_a_large_tiff_of_jpeg_is_read(options: dict[str, Any]) -> None:
    image = Image.new("RGB", (3000, 2000), (9, 200, 30))
    data = encoded(image, "TIFF", compression="jpeg", **options)
    assert load_image(data).tobytes() == Image.open(io.BytesIO(data)).tobytes()


def test_scans_of_what_follows_the_image_do_not_count() -> None:
    """Phones append videos and depth maps."""
    data = encoded(PHOTO, "JPEG", progressive=True) + jpeg_of_scans(1000)
    assert load_image(data).size == (60, 40)


def test_scans_of_a_thumbnail_do_not_count() -> None:
    data = encoded(PHOTO, "JPEG", progressive=True, comment=jpeg_of_scans(1000)[:60_000])
    assert load_image(data).size == (60, 40)


def test_large_icc_profiles_and_long_texts_are_read() -> None:
    long = b"x" * (2 << 20)
    files: dict[str, dict[str, Any]] = {
        "JPEG": {"icc_profile": long, "comment": long[:65_000]},
        "PNG": {"icc_profile": long},
        "WEBP": {"icc_profile": long, "xmp": long},
        "GIF": {"comment": long[:900_000]},
        "TIFF": {"icc_profile": long, "description": long.decode(), "tiffinfo": {700: long}},
        "AVIF": {"icc_profile": long, "xmp": long},
    }
    for kind, about in files.items():
        data, plain = encoded(PHOTO, kind, **about), encoded(PHOTO, kind)
        assert len(data) > len(plain) + (1000 if kind == "PNG" else 900_000)  # a PNG's is packed
        assert load_image(data).tobytes() == load_image(plain).tobytes()


def test_every_row_of_a_tall_tiff_may_be_a_strip() -> None:
    tall = Image.new("L", (2, 20_000))
    assert load_image(encoded(tall, "TIFF", strip_size=2)).size == (2, 20_000)
