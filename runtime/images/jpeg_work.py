"""The segments and scans of a JPEG, each of which a decoder goes through.

A progressive JPEG has several scans, and a decoder goes over all pixels in each of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

EXIF = b"Exif\0\0"

_MAX_SEGMENTS = 10_000  # an extended XMP of 100 MB has 1,600
_MAX_JUNK = 64 << 10  # bytes between them
_MAX_SCANS = 100  # progressive JPEG of four components has 18 by default
_FREE_SCAN_PIXELS = 4_000_000_000  # about two seconds of a core
_SCAN_PIXELS_PER_BYTE = 200  # a photograph has 10 scans and at least a byte in 10 pixels
_MAX_EXIF = 4 << 20  # bytes in all segments, which are joined one by one

_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_SOS, _EOI = 0xDA, 0xD9
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = frozenset((0xC2, 0xC6, 0xCA, 0xCE))
_WITHOUT_LENGTH = frozenset((0x01, 0xD8))


@dataclass(frozen=True)
class JpegWork:
    """What a JPEG asks of a decoder."""

    scans: int
    pixels: int
    exif: bytes


def jpeg_work(data: bytes) -> JpegWork | str:
    """The work of a JPEG, to the end of its first image; or what it has too much of."""
    pixels = components = scans = junk = 0
    progressive, exif, place = False, b"", 2
    for count, found in enumerate(_markers(data)):
        marker, start = found
        if not scans:
            junk += start - place
        body = data[start + 4 : start + 10]
        place = start + 2 + _length(data, start)
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
        elif data.startswith(EXIF, start + 4):
            exif += data[start + 10 : place]
            if len(exif) > _MAX_EXIF:
                return f"a JPEG of more than {_MAX_EXIF >> 20} MiB of EXIF, wanted less"
    return JpegWork(scans, pixels, exif)


def excessive_scans(scans: int, pixels: int, file_bytes: int) -> str | None:
    """What so many scans over so many pixels are, if they are too much for a file of this size."""
    if too_many_pixels(scans * pixels, file_bytes):
        return f"a JPEG of {scans} scans over {pixels:,} pixels, wanted fewer scans"
    return None


def too_many_pixels(scanned: int, file_bytes: int) -> bool:
    """Whether a decoder would go over more pixels, in all scans, than such a file should ask."""
    return scanned > max(_FREE_SCAN_PIXELS, _SCAN_PIXELS_PER_BYTE * file_bytes)


def _markers(data: bytes) -> Iterator[tuple[int, int]]:
    """Each marker and its place, to the end of the first image."""
    place = 2
    while found := _MARKER.search(data, place):
        marker = data[found.end() - 1]
        if marker == _EOI:
            return
        yield marker, found.start()
        place = found.start() + 2 + _length(data, found.start())


def _length(data: bytes, marker: int) -> int:
    """Bytes of the segment after its marker, the two of the length included."""
    if data[marker + 1] in _WITHOUT_LENGTH:
        return 0
    return max(2, int.from_bytes(data[marker + 2 : marker + 4]))
