"""Bounds on the work that a file makes for its decoder, found before it is decoded.

A few bytes of a file can ask for hours: a thousand passes over all pixels, a million blocks of
nothing, tables that are read again and again. These rules bound what is spent on a file, by its
size and its pixels, far above what cameras and programs write. What is merely damaged passes: the
decoder will say so.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping

from paligemma_edge.runtime.images.png_chunks import is_exif_or_xmp, png_chunks

_MAX_SEGMENTS = 10_000  # of a JPEG; an extended XMP of 100 MB has 1,600
_MAX_JUNK = 64 << 10  # bytes between them
_MAX_SCANS = 100  # progressive JPEG of four components has 18 by default
_FREE_SCAN_PIXELS = 4_000_000_000  # about two seconds of a core
_SCAN_PIXELS_PER_BYTE = 200  # a photograph has 10 scans and at least a byte in 10 pixels
_FREE_CHUNKS = 20_000  # of a PNG, whatever its size
_BYTES_PER_CHUNK = 1024  # for each further one; programs write chunks of 8 KiB
_MAX_PNG_TEXT = 64 << 20  # bytes; Pillow's own limits, past which it reads no image
_MAX_PNG_UNPACKED = 1 << 20
_MAX_GIF_EXTENSIONS = 1 << 20  # bytes before the first frame
_MAX_BMP_RLE = 8 << 20  # bytes; Pillow reads them one by one
_MAX_JPEG_EXIF = 4 << 20  # bytes in all segments, which are joined one by one
_MAX_TAG_NUMBERS = 1_000_000  # a strip for each row of a tall image is 65,535

_JPEG_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_SOS, _EOI, _EXIF = 0xDA, 0xD9, b"Exif\0\0"
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = frozenset((0xC2, 0xC6, 0xCA, 0xCE))
_WITHOUT_LENGTH = frozenset((0x01, 0xD8))
_TIFF_HEADER = re.compile(rb"II[*+]\0|MM\0[*+]")
_BYTE_TYPES = frozenset((1, 2, 6, 7))  # read as one value, however long
_CHILDREN = frozenset((34665, 34853, 40965))  # tags of the EXIF, GPS and interoperability tables


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
    pixels = components = scans = junk = 0
    progressive, exif, place = False, b"", 2
    for count, found in enumerate(_jpeg_markers(data)):
        marker, start = found
        if not scans:
            junk += start - place
        body = data[start + 4 : start + 10]
        place = start + 2 + _jpeg_length(data, start)
        if count >= _MAX_SEGMENTS or junk > _MAX_JUNK:
            return "a JPEG of very many segments, wanted an image that a camera or program wrote"
        if marker in _FRAMES and len(body) == 6:
            progressive = marker in _PROGRESSIVE
            pixels = int.from_bytes(body[1:3]) * int.from_bytes(body[3:5])
            components = body[5]
        elif marker == _SOS:
            scans += 1
            if not progressive and body[:1] == bytes([components]):
                break  # it holds all components: the decoder reads no other
            if scans > _MAX_SCANS:
                return f"a JPEG of more than {_MAX_SCANS} scans, wanted {_MAX_SCANS} at most"
        elif data.startswith(_EXIF, start + 4):
            exif += data[start + 10 : place]
            if len(exif) > _MAX_JPEG_EXIF:
                return f"a JPEG of more than {_MAX_JPEG_EXIF >> 20} MiB of EXIF, wanted less"
    if scans * pixels > max(_FREE_SCAN_PIXELS, _SCAN_PIXELS_PER_BYTE * len(data)):
        return f"a JPEG of {scans} scans over {pixels:,} pixels, wanted fewer scans"
    return _of_tags(exif)


def _jpeg_markers(data: bytes) -> Iterator[tuple[int, int]]:
    """Each marker of a JPEG and its place, to the end of its first image."""
    place = 2
    while found := _JPEG_MARKER.search(data, place):
        marker = data[found.end() - 1]
        if marker == _EOI:
            return
        yield marker, found.start()
        place = found.start() + 2 + _jpeg_length(data, found.start())


def _jpeg_length(data: bytes, marker: int) -> int:
    """Bytes of the segment after its marker, the two of the length included."""
    if data[marker + 1] in _WITHOUT_LENGTH:
        return 0
    return max(2, int.from_bytes(data[marker + 2 : marker + 4]))


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
    for found in _TIFF_HEADER.finditer(data):
        if problem := _of_tags(data[found.start() :]):
            return problem
    return None


def _of_tags(data: bytes) -> str | None:
    """Of a TIFF or an EXIF: each number that a tag counts becomes one of Python's."""
    data = data.removeprefix(_EXIF)
    if len(data) < 8 or not _TIFF_HEADER.match(data):
        return None
    if _Tags(data).numbers > _MAX_TAG_NUMBERS:
        return f"a TIFF or EXIF of more than {_MAX_TAG_NUMBERS:,} numbers, wanted fewer"
    return None


class _Tags:
    """How many numbers the first table of tags holds, with each kind of table below it."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._order = "<" if data[:2] == b"II" else ">"
        self._big = ord("+") in data[2:4]
        self.numbers = 0
        children = self._count(self._offset(8 if self._big else 4))
        for child in children.values():
            for grandchild in self._count(child).values():
                self._count(grandchild)

    def _count(self, table: int) -> dict[int, int]:
        """Add the numbers of a table; the places of those that it leads to."""
        children = {}
        first = table + (8 if self._big else 2)
        entry, size = (f"{self._order}HHQ", 20) if self._big else (f"{self._order}HHI", 12)
        end = first + size * self._number("Q" if self._big else "H", table)
        for at in range(first, min(end, len(self._data) - size + 1), size):
            tag, kind, count = struct.unpack_from(entry, self._data, at)
            self.numbers += 0 if kind in _BYTE_TYPES else count
            if tag in _CHILDREN:
                children[tag] = self._offset(at + struct.calcsize(entry))
        return children

    def _offset(self, at: int) -> int:
        return self._number("Q" if self._big else "I", at)

    def _number(self, kind: str, at: int) -> int:
        """A number of the file; 0 beyond its end."""
        part = self._data[at : at + struct.calcsize(self._order + kind)]
        if len(part) < struct.calcsize(self._order + kind):
            return 0
        number: int = struct.unpack(self._order + kind, part)[0]
        return number


_CHECKS: Mapping[str, Callable[[bytes], str | None]] = {
    "JPEG": _of_jpeg,
    "PNG": _of_png,
    "WEBP": _of_webp,
    "GIF": _of_gif,
    "BMP": _of_bmp,
    "TIFF": _of_tags,
    "AVIF": _of_avif,
}
