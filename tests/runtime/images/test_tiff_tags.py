"""The numbers of a TIFF's tags are those that Pillow reads."""

from __future__ import annotations

import io

import pytest
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from paligemma_edge.runtime.images.tiff_tags import TiffTags, is_tiff
from tests.helpers.image_files import encoded, tags

IMAGE = Image.effect_noise((50, 70), 90)


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("strip_size", [50, 250, 50 * 70])
def test_numbers_of_the_first_table(strip_size: int, *, big: bool) -> None:
    data = encoded(IMAGE, "TIFF", strip_size=strip_size, big_tiff=big, tiffinfo={333: "name"})
    opened = Image.open(io.BytesIO(data))
    assert isinstance(opened, TiffImageFile)
    read = TiffTags(data)
    for tag, value in opened.tag_v2.items():
        numbers = value if isinstance(value, tuple) else (value,)
        wanted = numbers if all(type(number) is int for number in numbers) else ()
        assert read.integers(tag) == (wanted if tag != 333 else tuple(b"name\0")[:0])
    assert len(read.integers(273)) == len(read.integers(279)) > 0
    assert read.integers(9999) == ()


def test_what_the_file_does_not_hold() -> None:
    assert TiffTags(tags([(273, 4, 5, 26)], rest=bytes(9))).integers(273) == (0, 0)
    assert TiffTags(tags([(273, 4, 5, 9999)])).integers(273) == ()
    assert TiffTags(tags([(273, 4, 2**32 - 1, 2**32 - 1)])).integers(273) == ()
    assert not is_tiff(b"II*\0")
    assert not is_tiff(b"\x89PNG\r\n\x1a\n")


def test_the_first_of_a_tag_that_comes_twice_counts() -> None:
    """libtiff ignores the second, though Pillow takes it."""
    assert TiffTags(tags([(322, 4, 1, 16), (322, 4, 1, 32)])).integers(322) == (16,)
