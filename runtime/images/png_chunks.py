"""The chunks of a PNG, and a PNG without those that are of no use here: texts and colour profiles.

Pillow refuses a sound file of which one is large once unpacked, and keeps texts among its own
fields: one that is called "interlace" or "transparency" changes how the pixels are read. Texts
that may hold the image's orientation stay.
"""

from __future__ import annotations

from collections.abc import Iterator

_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
# The names of texts in which Pillow looks for EXIF and XMP.
_EXIF_AND_XMP = (b"exif\0", b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")


def png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """The kind of each chunk before the last, where its content begins, and its bytes."""
    place = 8
    while place + 8 <= len(data):
        length, kind = int.from_bytes(data[place : place + 4]), data[place + 4 : place + 8]
        if kind == b"IEND":
            return
        yield kind, place + 8, length
        place += 12 + length


def is_exif_or_xmp(kind: bytes, data: bytes, start: int) -> bool:
    """Whether the chunk whose content begins there is a text that holds EXIF or XMP."""
    return kind in _TEXTS and data.startswith(_EXIF_AND_XMP, start)


def without_unused_chunks(data: bytes) -> bytes:
    """A PNG with the same pixels and orientation; a chunk that is cut short stays, to be told."""
    whole, kept, place = memoryview(data), [], 0
    for kind, start, length in png_chunks(data):
        end = start + length + 4
        unused = kind == b"iCCP" or (kind in _TEXTS and not is_exif_or_xmp(kind, data, start))
        if unused and end <= len(data):
            kept.append(whole[place : start - 8])
            place = end
    return b"".join((*kept, whole[place:])) if kept else data
