"""Bounds on the work that a file makes for its decoder, found before it is decoded.

A few bytes of a file can ask for hours: a thousand passes over all pixels, a million blocks of
nothing, tables that are read again and again. These rules bound what is spent on a file, by its
size and its pixels, far above what cameras and programs write. What is merely damaged passes: the
decoder will say so.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping

from paligemma_edge.runtime.images.jpeg_work import EXIF, excessive_scans, jpeg_work
from paligemma_edge.runtime.images.png_chunks import is_exif_or_xmp, png_chunks
from paligemma_edge.runtime.images.tiff_tags import TIFF_HEADER, TiffTags, is_tiff
from paligemma_edge.runtime.images.tiff_tiles import excessive_tiles

_FREE_CHUNKS = 20_000  # of a PNG, whatever its size
_BYTES_PER_CHUNK = 1024  # for each further one; programs write chunks of 8 KiB
_MAX_PNG_TEXT = 64 << 20  # bytes; Pillow's own limits, past which it reads no image
_MAX_PNG_UNPACKED = 1 << 20
_MAX_GIF_EXTENSIONS = 1 << 20  # bytes before the first frame
_MAX_BMP_RLE = 8 << 20  # bytes; Pillow reads them one by one
_MAX_TAG_NUMBERS = 1_000_000  # a strip for each row of a tall image is 65,535


def excessive_work(name: str, data: bytes) -> str | None:
    """What a file of a format asks too much of, with what is wanted; None where it does not.

    Args:
        name: of the format, such as "JPEG".
        data: the whole file.

    Example:
        >>> excessive_work("JPEG", data)
        'a JPEG of more than 100 scans, wanted 100 at most'
    """
    check = _CHECKS.get(name)
    return None if check is None else check(data)


def _of_jpeg(data: bytes) -> str | None:
    work = jpeg_work(data)
    if isinstance(work, str):
        return work
    return excessive_scans(work.scans, work.pixels, len(data)) or _of_tags(work.exif)


def _of_png(data: bytes) -> str | None:
    most, plain, unpacked = _FREE_CHUNKS + len(data) // _BYTES_PER_CHUNK, 0, 0
    for count, (kind, start, length) in enumerate(png_chunks(data), 1):
        content = slice(start, start + length)
        if kind == b"eXIf" and (problem := _of_tags(data[content])):
            return problem
        if is_exif_or_xmp(kind, data, start):
            plain += length
            unpacked += len(_unpacked(kind, data[content]))
        if plain > _MAX_PNG_TEXT or unpacked > _MAX_PNG_UNPACKED:
            return (
                f"a PNG of more than {_MAX_PNG_TEXT >> 20} MiB of EXIF or XMP as text, "
                f"or {_MAX_PNG_UNPACKED >> 20} MiB where it is compressed, wanted less"
            )
        if count > most:
            return f"a PNG of more than {most:,} chunks, wanted fewer and larger ones"
    return None


def _unpacked(kind: bytes, text: bytes) -> bytes:
    """What a text is once unpacked, as far as it matters; nothing of one that is not compressed."""
    rest = text.partition(b"\0")[2]
    if kind == b"iTXt":
        packed = rest[2:].split(b"\0", 2)[-1] if rest.startswith(b"\x01\0") else b""
    else:
        packed = rest[1:] if kind == b"zTXt" else b""
    try:
        return zlib.decompressobj().decompress(packed, _MAX_PNG_UNPACKED + 1)
    except zlib.error:
        return b""


def _of_webp(data: bytes) -> str | None:
    place = 12
    while place + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, place)
        if kind == b"EXIF" and (problem := _of_tags(data[place + 8 : place + 8 + length])):
            return problem
        if kind == b"ANMF":
            break
        place += 8 + length + length % 2
    return None


def _of_gif(data: bytes) -> str | None:
    """Comments are joined one by one, so their time grows with the square of their bytes."""
    if len(data) < 13:
        return None
    place = 13 + ((6 << (data[10] & 7)) if data[10] & 0x80 else 0)
    end, blocks = place + _MAX_GIF_EXTENSIONS, False
    while place < min(end, len(data)):
        byte = data[place]
        if blocks:
            blocks, place = byte > 0, place + 1 + byte
        elif byte in b",;":
            return None
        else:
            blocks = byte == ord("!")
            place += 1 + blocks  # of an extension also its label
    if place >= len(data):
        return None
    return f"a GIF with more than {_MAX_GIF_EXTENSIONS >> 20} MiB before its first frame"


def _of_bmp(data: bytes) -> str | None:
    compressed = data[30:34] in (b"\x01\0\0\0", b"\x02\0\0\0")
    if compressed and len(data) > _MAX_BMP_RLE:
        return f"a run-length encoded BMP of more than {_MAX_BMP_RLE >> 20} MiB, wanted a PNG"
    return None


def _of_avif(data: bytes) -> str | None:
    """Its EXIF may lie anywhere."""
    for found in TIFF_HEADER.finditer(data):
        if problem := _of_tags(data[found.start() :]):
            return problem
    return None


def _of_tags(data: bytes) -> str | None:
    """Of an EXIF: each number that a tag counts becomes one of Python's."""
    data = data.removeprefix(EXIF)
    return _of_numbers(TiffTags(data)) if is_tiff(data) else None


def _of_tiff(data: bytes) -> str | None:
    if not is_tiff(data):
        return None
    tags = TiffTags(data)
    return _of_numbers(tags) or excessive_tiles(data, tags)


def _of_numbers(tags: TiffTags) -> str | None:
    if tags.numbers > _MAX_TAG_NUMBERS:
        return f"a TIFF or EXIF of more than {_MAX_TAG_NUMBERS:,} numbers, wanted fewer"
    return None


_CHECKS: Mapping[str, Callable[[bytes], str | None]] = {
    "JPEG": _of_jpeg,
    "PNG": _of_png,
    "WEBP": _of_webp,
    "GIF": _of_gif,
    "BMP": _of_bmp,
    "TIFF": _of_tiff,
    "AVIF": _of_avif,
}
