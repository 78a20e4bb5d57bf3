"""Detections in the forms that other programs read: JSON, rows, COCO, supervision, NumPy.

Knows those forms. Knows nothing of a model, of files, or of how an answer was read.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from paligemma_edge.runtime.errors import MissingExtraError, OptionError
from paligemma_edge.runtime.results import rle
from paligemma_edge.runtime.results.confidence import finite
from paligemma_edge.runtime.results.detection import Detection
from paligemma_edge.runtime.results.mask import inside, paste_mask
from paligemma_edge.runtime.results.rle import Rle
from paligemma_edge.runtime.text.parse_answer import Box
from paligemma_edge.runtime.validation import check_count, plain

if TYPE_CHECKING:
    import supervision

_SPARE_BITS = 2  # of a checksum of 32, so that it fits into an int32 with classes before it
_WHOLE = Box(0, 0, 1, 1)
_CLASS_NAME = "class_name"  # supervision.config.CLASS_NAME_DATA_FIELD


def to_dict(detection: Detection) -> dict[str, Any]:
    """A detection as JSON that every reader takes: no NaN, no infinity.

    `xyxy` is in pixels, `xyxy_normalized` the same as shares of the sides, and `mask`, where there
    is one, is as pycocotools writes it.
    """
    fields = {
        "label": detection.label,
        "class_id": detection.class_id,
        "confidence": detection.confidence,
        "log_prob": finite(detection.log_prob),
        "xyxy": list(detection.xyxy),
        "xyxy_normalized": list(detection.xyxy_normalized),
    }
    runs = mask_runs(detection)
    return fields if runs is None else fields | {"mask": runs.to_dict()}


def to_row(detection: Detection) -> dict[str, Any]:
    """A detection as a row of a table: no lists, no mask; corners in pixels."""
    x0, y0, x1, y1 = detection.xyxy
    return {
        "label": detection.label,
        "class_id": detection.class_id,
        "confidence": detection.confidence,
        "log_prob": finite(detection.log_prob),
        "x0": x0,
        "y0": y0,
        "x1": x1,
        "y1": y1,
    }


def to_coco(
    detections: Sequence[Detection],
    *,
    image_id: int,
    categories: Mapping[str, int],
    first_id: int,
) -> list[dict[str, Any]]:
    """COCO annotations with ids from `first_id` on, at least 1: COCO's tools take 0 for none.

    A box without pixels is left out, for COCO cannot hold one. `bbox` is the answer's box,
    x, y, width, height in pixels; `area` is the mask's, the box's where there is none; `score`
    is the confidence, by COCO's name. OptionError for a label that `categories` lacks.
    """
    first_id = check_count("first_id", first_id)  # COCO's tools take 0 for none
    if not isinstance(categories, Mapping):
        raise OptionError(f"categories is {categories!r:.80}, wanted the id of each label")
    annotations = (
        coco_annotation(
            to_dict(detection),
            image_id=plain(image_id),
            category_id=plain(_category(detection.label, categories)),
        )
        for detection in detections
        if _has_pixels(detection)
    )
    return [{"id": number, **fields} for number, fields in enumerate(annotations, first_id)]


def class_number(label: str, classes: Sequence[str]) -> int:
    """The place of a label in `classes`; of others a larger number that their text alone decides.

    It is so the same in the results of all images, and fits into an int32.
    """
    if label in classes:
        return classes.index(label)
    return len(classes) + (zlib.crc32(label.encode()) >> _SPARE_BITS)


def coco_annotation(
    detection: Mapping[str, Any], *, image_id: int, category_id: int
) -> dict[str, Any]:
    """A COCO annotation, all but its id, of a detection as `to_dict` gives it."""
    x0, y0, x1, y1 = detection["xyxy"]
    fields = {
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": (x1 - x0) * (y1 - y0),
        "iscrowd": 0,
        "score": detection["confidence"],
    }
    if "mask" not in detection:
        return fields
    mask = detection["mask"]
    return fields | {"area": rle.area(mask["counts"]), "segmentation": mask}


def to_supervision(
    detections: Sequence[Detection], width: int, height: int, classes: Sequence[str]
) -> supervision.Detections:
    """`supervision.Detections` of all detections, in order; boxes without pixels included.

    `xyxy` is that of the package's own parser, in pixels, not rounded, with corners in order;
    `mask` bool [objects, height, width], None where no detection has one; `class_id` is the
    `class_number`; `data["class_name"]` holds the labels. MissingExtraError without that package.
    """
    try:
        import supervision
    except ModuleNotFoundError as missing:
        if missing.name != "supervision":
            raise
        raise MissingExtraError(
            "the package supervision is not installed, and its Detections were requested; "
            "run: pip install supervision"
        ) from None
    labels = [detection.label for detection in detections]
    corners = np.array([one.xyxy_normalized for one in detections], np.float64).reshape(-1, 2, 2)
    xyxy = np.sort(corners, axis=1) * (width, height)
    return supervision.Detections(
        xyxy=xyxy.reshape(-1, 4),
        mask=_stacked_masks(detections, width, height),
        confidence=np.array([one.confidence for one in detections], np.float32),
        class_id=np.array([class_number(label, classes) for label in labels], int),
        data={_CLASS_NAME: np.array(labels, str)},
    )


def to_numpy(detections: Sequence[Detection]) -> NDArray[np.void]:
    """Structured array [objects] of what `Detection` has, but for masks."""
    longest = max((len(detection.label) for detection in detections), default=0)
    kinds = [
        ("label", f"U{max(longest, 1)}"),
        ("class_id", "i4"),
        ("confidence", "f4"),
        ("xyxy", "i4", 4),
        ("xyxy_normalized", "f4", 4),
    ]
    rows = [
        (one.label, one.class_id, one.confidence, one.xyxy, one.xyxy_normalized)
        for one in detections
    ]
    return np.array(rows, kinds)


def mask_runs(detection: Detection) -> Rle | None:
    """Runs of a detection's mask; None where there is no mask. Costs no more than its box."""
    if detection.decoded_mask is None:
        return None
    x0, y0, _, _ = detection.xyxy
    part = _mask_in_box(detection, detection.decoded_mask)
    return rle.encode(part, at=(y0, x0), size=(detection.height, detection.width))


def _category(label: str, categories: Mapping[str, int]) -> int:
    if label not in categories:
        known = ", ".join(repr(name) for name in list(categories)[:8]) or "none"
        raise OptionError(
            f"the answer names {label!r:.80}, and the categories are {known:.200}; add it to them"
        )
    return categories[label]


def _stacked_masks(
    detections: Sequence[Detection], width: int, height: int
) -> NDArray[np.bool_] | None:
    """Masks, bool [objects, height, width]; a missing one is empty, None if all are missing."""
    decoded = [detection.decoded_mask for detection in detections]
    if all(values is None for values in decoded):
        return None
    masks = np.zeros((len(detections), height, width), np.bool_)
    for detection, values, mask in zip(detections, decoded, masks, strict=True):
        if values is not None and _has_pixels(detection):
            x0, y0, x1, y1 = detection.xyxy
            mask[y0:y1, x0:x1] = _mask_in_box(detection, values)
    return masks


def _mask_in_box(detection: Detection, decoded: NDArray[np.float32]) -> NDArray[np.bool_]:
    """What `Detection.mask` holds in its box; without pixels where the box has none."""
    x0, y0, x1, y1 = detection.xyxy
    return inside(paste_mask(decoded, _WHOLE, max(x1 - x0, 0), max(y1 - y0, 0)))


def _has_pixels(detection: Detection) -> bool:
    x0, y0, x1, y1 = detection.xyxy
    return x1 > x0 and y1 > y0
