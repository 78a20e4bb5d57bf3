"""The tiles and strips of a TIFF: how much they ask, where many of them are the same bytes.

A decoder goes through each of them. A JPEG in a tile may have several scans, as any other has, and
tiles reach beyond the image.
"""

from __future__ import annotations

from collections import Counter

from paligemma_edge.runtime.images.jpeg_work import jpeg_work, too_many_pixels
from paligemma_edge.runtime.images.tiff_tags import TiffTags

_WIDTH, _HEIGHT, _COMPRESSION, _TILE_WIDTH, _TILE_HEIGHT = 256, 257, 259, 322, 323
_OFFSETS_AND_BYTES = ((273, 279), (324, 325))  # of strips, of tiles
_JPEG = 7
_FREE_TILE_PIXELS = 1 << 26  # 65,535 x 1 in tiles of 1,024 x 1,024
_MAX_OVERHANG = 2  # pixels of all tiles, as a multiple of the image's
_LEAST_SCAN = 4096  # pixels that take as long as the beginning of a scan does
_MAX_OVERLAP = 2  # bytes of all tiles that differ, as a multiple of the file's


def excessive_tiles(data: bytes, tags: TiffTags) -> str | None:
    """What the tiles or strips of a TIFF ask too much of, with what is wanted."""
    if tags.integers(_COMPRESSION)[:1] == (_JPEG,) and (problem := _of_jpegs(data, tags)):
        return problem
    width, height = _first(tags, _WIDTH), _first(tags, _HEIGHT)
    across, down = _first(tags, _TILE_WIDTH), _first(tags, _TILE_HEIGHT)
    if across > 0 and down > 0:
        pixels = -(-width // across) * -(-height // down) * across * down
        if pixels > max(_FREE_TILE_PIXELS, _MAX_OVERHANG * width * height):
            return (
                f"a TIFF of {width} x {height} pixels in tiles of {across} x {down}, "
                "wanted smaller tiles"
            )
    return None


def _of_jpegs(data: bytes, tags: TiffTags) -> str | None:
    """Of all tiles or strips together, each of which is a JPEG."""
    scanned = walked = 0
    for (start, end), times in _places(data, tags).items():
        walked += end - start
        if walked > _MAX_OVERLAP * len(data):
            return "a TIFF whose tiles overlap, wanted each in a place of its own"
        work = jpeg_work(data[start:end])
        if isinstance(work, str):
            return f"a TIFF that holds {work}"
        scanned += times * work.scans * max(work.pixels, _LEAST_SCAN)
        if too_many_pixels(scanned, len(data)):
            return (
                f"a TIFF of tiles or strips that are JPEGs, of {work.scans} scans and at least "
                f"{scanned:,} pixels in all scans, wanted fewer scans"
            )
    return None


def _places(data: bytes, tags: TiffTags) -> Counter[tuple[int, int]]:
    """Where the bytes of tiles or strips begin and end, and how many have the same."""
    places: Counter[tuple[int, int]] = Counter()
    for offsets, sizes in _OFFSETS_AND_BYTES:
        starts, lengths = tags.integers(offsets), tags.integers(sizes)
        lengths += (0,) * (len(starts) - len(lengths))
        for start, length in zip(starts, lengths, strict=False):
            if 0 < start < len(data):  # 0 is a tile that was left out
                end = start + length if length > 0 else len(data)
                places[start, min(end, len(data))] += 1
    return places


def _first(tags: TiffTags, tag: int) -> int:
    return next(iter(tags.integers(tag)), 0)
