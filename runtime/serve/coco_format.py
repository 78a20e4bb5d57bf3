"""Objects as a COCO document of one image, which pycocotools and annotation tools read.

Source: https://cocodataset.org/#format-data
"""

from __future__ import annotations

import msgspec
from msgspec import UNSET, Struct, UnsetType

from paligemma_edge.runtime.results.formats import class_number
from paligemma_edge.runtime.results.result import ObjectResult

_IMAGE_ID = 1  # COCO's tools take 0 for none


class CocoImage(Struct):
    """The image; `file_name` is the id that another question about it may give."""

    id: int
    width: int
    height: int
    file_name: str


class CocoRle(Struct):
    """COCO's runs of a mask; the size is height, width."""

    size: tuple[int, int]
    counts: str


class CocoAnnotation(Struct):
    """An object; `bbox` is x, y, width, height in pixels, `score` the confidence."""

    id: int
    image_id: int
    category_id: int
    bbox: tuple[int, int, int, int]
    area: int
    iscrowd: int
    score: float
    segmentation: CocoRle | UnsetType = UNSET


class CocoCategory(Struct):
    """A label."""

    id: int
    name: str


class CocoDocument(Struct):
    """One image, its objects, and the labels that were asked for or found."""

    images: list[CocoImage]
    annotations: list[CocoAnnotation]
    categories: list[CocoCategory]


def coco_document(result: ObjectResult, image_id: str) -> CocoDocument:
    """A result in COCO's form; a box without pixels is left out, for COCO cannot hold one.

    Args:
        result: the objects.
        image_id: the name that the image gets.

    Example:
        >>> COCO().dataset = requests.post(url, ...).json()
    """
    names = dict.fromkeys((*result.classes, *(one.label for one in result)))
    categories = {name: class_number(name, result.classes) + 1 for name in names}
    annotations = result.to_coco(image_id=_IMAGE_ID, categories=categories)
    return CocoDocument(
        [CocoImage(_IMAGE_ID, result.width, result.height, image_id)],
        msgspec.convert(annotations, list[CocoAnnotation]),
        [CocoCategory(number, name) for name, number in categories.items()],
    )
