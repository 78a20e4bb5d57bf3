"""Images by their content, the latest ones."""

from __future__ import annotations

import re
from io import BytesIO

import pytest
from PIL import Image

from paligemma_edge import ImageError, PaliGemma
from paligemma_edge.runtime.images.batch import ImageReader
from paligemma_edge.runtime.scheduling.image_store import ImageStore


@pytest.fixture
def reader(shapes_model: PaliGemma) -> ImageReader:
    return shapes_model._loaded.pipeline.images


def png(grey: int) -> bytes:
    file = BytesIO()
    Image.new("L", (8, 6), grey).save(file, "PNG")
    return file.getvalue()


def test_one_image_is_read_once_and_found_by_its_id(reader: ImageReader) -> None:
    store = ImageStore(reader)
    first = store.add(png(1))
    assert store.add(png(1)) is first
    assert store.get(first.id) is first
    assert (first.batch.width, first.batch.height) == (8, 6)
    assert store.add(png(2)).id != first.id


def test_an_id_cannot_be_told_from_the_image(reader: ImageReader) -> None:
    """Who knows a file must not learn whether somebody else has sent it."""
    one, other = ImageStore(reader).add(png(1)).id, ImageStore(reader).add(png(1)).id
    assert one != other
    assert re.fullmatch("img_[0-9a-f]{32}", one)


def test_the_oldest_go_first(reader: ImageReader) -> None:
    size = ImageStore(reader).add(png(1)).batch.pixel_values.nbytes
    store = ImageStore(reader, max_bytes=2 * size)
    ids = [store.add(png(grey)).id for grey in (1, 2)]
    assert store.get(ids[0]) is not None  # which makes it the latest
    ids.append(store.add(png(3)).id)
    assert [store.get(one) is not None for one in ids] == [True, False, True]


def test_what_is_no_image_is_not_kept(reader: ImageReader) -> None:
    with pytest.raises(ImageError):
        ImageStore(reader).add(b"no image")
