"""Damaged images of every format that is read, given to `load_image` as bytes."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin

from paligemma_edge.runtime.images.load import load_image
from tests.damage.attempt import Damaged, Wrong
from tests.damage.mutate import mutated_bytes
from tests.helpers.image_files import encoded, png_chunk

SIZE = (33, 20)


class Images:
    """Small files of all formats, of which two changed ones in a hundred are two formats in one."""

    def __init__(self, prepared: Path, own: Path) -> None:
        self._seeds = {p.name: p.read_bytes() for p in sorted(prepared.iterdir())}

    @staticmethod
    def prepare(folder: Path) -> None:
        """Write the undamaged files, each of which is read."""
        for name, data in seeds().items():
            load_image(data)
            (folder / name).write_bytes(data)

    def damaged(self, random: Random) -> Damaged:
        """One of the files, changed."""
        name = random.choice(list(self._seeds))
        data = mutated_bytes(self._seeds[name], random)
        if random.random() < 0.02:
            data = data[: random.randrange(64)] + random.choice(list(self._seeds.values()))
        return Damaged(name, data)

    def use(self, damaged: Damaged) -> str:
        """Read it."""
        image = load_image(damaged.data)
        if image.mode != "RGB" or len(image.tobytes()) != 3 * image.width * image.height:
            raise Wrong(f"read as {image.mode}, {image.size}")
        return "read"


KIND = Images


def seeds() -> dict[str, bytes]:
    """A small file of each format and of each way to write it, by a name."""
    return {**_jpeg(), **_png(), **_webp(), **_bmp(), **_gif(), **_tiff(), **_avif()}


def _noise(mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(5).integers(0, 256, (SIZE[1], SIZE[0], 4), dtype=np.uint8)
    pixels[:, : SIZE[0] // 2] = 90  # plain, so that run lengths are used too
    image = Image.fromarray(pixels)
    if mode == "I;16":
        return Image.fromarray(pixels[..., :2].copy().view("<u2")[..., 0])
    return image if mode == "RGBA" else image.convert("RGB").convert(mode)


def _exif() -> bytes:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a note"
    exif.get_ifd(0x8769)[0x9003] = "2020:01:01 00:00:00"
    exif.get_ifd(0x8825)[1] = "N"
    return exif.tobytes()


def _profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _jpeg() -> dict[str, bytes]:
    rgb = _noise()
    about: dict[str, Any] = {"exif": _exif(), "icc_profile": _profile(), "comment": b"a note"}
    return {
        "plain.jpg": encoded(rgb, "JPEG"),
        "grey.jpg": encoded(_noise("L"), "JPEG"),
        "progressive.jpg": encoded(rgb, "JPEG", progressive=True),
        "cmyk.jpg": encoded(_noise("CMYK"), "JPEG"),
        "subsampled.jpg": encoded(rgb, "JPEG", subsampling=2, restart_marker_blocks=1, **about),
        "several.mpo": encoded(rgb, "MPO", save_all=True, append_images=[_noise()], exif=_exif()),
    }


def _png() -> dict[str, bytes]:
    modes = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
    files = {f"{m.lower().replace(';', '')}.png": encoded(_noise(m), "PNG") for m in modes}
    text = PngImagePlugin.PngInfo()
    text.add_text("note", "a note", zip=True)
    text.add_itxt("long", "é" * 50)
    about: dict[str, Any] = {"pnginfo": text, "exif": _exif(), "icc_profile": _profile()}
    return {
        **files,
        "text.png": encoded(_noise(), "PNG", dpi=(72, 72), **about),
        "transparent.png": encoded(_noise("P"), "PNG", transparency=bytes(range(256))),
        "interlaced.png": _interlaced_png(),
        "animated.png": encoded(
            _noise(), "PNG", save_all=True, append_images=[_noise("L").convert("RGB")]
        ),
    }


def _interlaced_png() -> bytes:
    """Adam7, which Pillow reads and does not write: 1 x 1 is the first pass alone."""
    header = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 1)
    pixels = png_chunk(b"IDAT", zlib.compress(b"\0\x10\x20\x30"))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + pixels + png_chunk(b"IEND", b"")


def _webp() -> dict[str, bytes]:
    animated: dict[str, Any] = {"save_all": True, "append_images": [_noise("RGBA")] * 2}
    return {
        "lossy.webp": encoded(_noise(), "WEBP", exif=_exif(), icc_profile=_profile()),
        "lossless.webp": encoded(_noise("RGBA"), "WEBP", lossless=True),
        "animated.webp": encoded(_noise(), "WEBP", **animated),
    }


def _bmp() -> dict[str, bytes]:
    files = {f"{mode.lower()}.bmp": encoded(_noise(mode), "BMP") for mode in ("1", "L", "P", "RGB")}
    return {**files, "rle8.bmp": _rle_bmp(8, 1), "rle4.bmp": _rle_bmp(4, 2)}


def _rle_bmp(bits: int, method: int) -> bytes:
    """Four rows of eight pixels: runs, absolute pixels, a jump and the end."""
    rows = b"\x08\x01\0\0" + b"\0\x04\x01\x00\x01\x00\x04\x01\0\0" + b"\0\x02\x02\x01\x06\0\0\x01"
    palette = bytes(range(256)) * 4 if bits == 8 else bytes(range(64))
    offset = 14 + 40 + len(palette)
    head = struct.pack("<2sIHHI", b"BM", offset + len(rows), 0, 0, offset)
    info = struct.pack("<IiiHHIIiiII", 40, 8, 4, 1, bits, method, len(rows), 1, 1, 0, 0)
    return head + info + palette + rows


def _gif() -> dict[str, bytes]:
    frames: dict[str, Any] = {"save_all": True, "append_images": [_noise("L").convert("P")] * 2}
    return {
        "plain.gif": encoded(_noise("P"), "GIF"),
        "interlaced.gif": encoded(_noise("L"), "GIF", interlace=1, comment=b"a note"),
        "animated.gif": encoded(_noise("P"), "GIF", transparency=3, **frames),
    }


def _tiff() -> dict[str, bytes]:
    methods = ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "lzma", "zstd")
    files = {f"{m}.tif": encoded(_noise(), "TIFF", compression=m) for m in methods}
    fax = {f"{m}.tif": encoded(_noise("1"), "TIFF", compression=m) for m in ("group3", "group4")}
    modes = ("1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "I;16")
    kinds = {f"{m.lower().replace(';', '')}.tif": encoded(_noise(m), "TIFF") for m in modes}
    pages: dict[str, Any] = {"save_all": True, "append_images": [_noise(), _noise("L")]}
    return {
        **files,
        **fax,
        **kinds,
        "big.tif": encoded(_noise(), "TIFF", big_tiff=True),
        "pages.tif": encoded(_noise(), "TIFF", **pages),
        "exif.tif": encoded(_noise(), "TIFF", exif=_exif(), icc_profile=_profile()),
    }


def _avif() -> dict[str, bytes]:
    return {
        "plain.avif": encoded(_noise(), "AVIF", exif=_exif(), icc_profile=_profile()),
        "alpha.avif": encoded(_noise("RGBA"), "AVIF"),
        "animated.avif": encoded(_noise(), "AVIF", save_all=True, append_images=[_noise()]),
    }
