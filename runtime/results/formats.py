"""Detections in the forms that other programs read: JSON, COCO, supervision, a NumPy array.

Knows those forms. Knows nothing of a model, of files, or of how an answer was read.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from paligemma_edge.runtime.errors import MissingExtraError, OptionError
from paligemma_edge.runtime.results import rle
from paligemma_edge.runtime.results.detection import Detection
from paligemma_edge.runtime.results.mask import inside, paste_mask
from paligemma_edge.runtime.results.rle import Rle
from paligemma_edge.runtime.text.parse_answer import Box

if TYPE_CHECKING:
    import supervision

_WHOLE = Box(0, 0, 1, 1)
_CLASS_NAME = "class_name"  # supervision.config.CLASS_NAME_DATA_FIELD


def to_json(detection: Detection) -> dict[str, Any]:
    """A detection as JSON that every reader takes: no NaN, no infinity.

    `box` is x0, y0, x1, y1 in pixels, `box_normalised` the same as shares of the sides, and
    `mask`, where there is one, is as pycocotools writes it.
    """
    y0, x0, y1, x1 = _corners(detection.box)
    fields = {
        "label": detection.label,
        "score": finite(detection.score),
        "box": list(detection.xyxy),
        "box_normalised": [x0, y0, x1, y1],
    }
    runs = mask_runs(detection)
    return fields if runs is None else fields | {"mask": runs.to_json()}


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
    is exp(score), 0..1. OptionError for a label that `categories` lacks.
    """
    if not isinstance(first_id, int) or first_id < 1:
        raise OptionError(
            f"first_id is {first_id!r}, wanted 1 or more; COCO's tools take 0 for none"
        )
    if not isinstance(categories, Mapping):
        raise OptionError(f"categories is {categories!r:.80}, wanted the id of each label")
    annotations = (
        coco_annotation(
            to_json(detection),
            image_id=image_id,
            category_id=_category(detection.label, categories),
        )
        for detection in detections
        if _has_pixels(detection)
    )
    return [{"id": number, **fields} for number, fields in enumerate(annotations, first_id)]


def number_labels(labels: Iterable[str]) -> dict[str, int]:
    """COCO's ids of labels, from 1 on as they first appear."""
    return {label: number for number, label in enumerate(dict.fromkeys(labels), 1)}


def coco_annotation(
    detection: Mapping[str, Any], *, image_id: int, category_id: int
) -> dict[str, Any]:
    """A COCO annotation, all but its id, of a detection as `to_json` gives it."""
    x0, y0, x1, y1 = detection["box"]
    fields = {
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": (x1 - x0) * (y1 - y0),
        "iscrowd": 0,
        "score": share(detection["score"]),
    }
    if "mask" not in detection:
        return fields
    mask = detection["mask"]
    return fields | {"area": rle.area(mask["counts"]), "segmentation": mask}


def to_supervision(
    detections: Sequence[Detection], width: int, height: int
) -> supervision.Detections:
    """`supervision.Detections` of all detections, in order; boxes without pixels included.

    Float32 `xyxy` in pixels; `mask` bool [objects, height, width], None where no detection has
    one; `confidence` is exp(score); `class_id` numbers labels from 0 as they first appear, and
    `data["class_name"]` holds them. MissingExtraError without that package.
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
    names = list(dict.fromkeys(labels))
    return supervision.Detections(
        xyxy=np.array([one.xyxy for one in detections], np.float32).reshape(-1, 4),
        mask=_stacked_masks(detections, width, height),
        confidence=np.array([share(one.score) for one in detections], np.float32),
        class_id=np.array([names.index(label) for label in labels], int),
        data={_CLASS_NAME: np.array(labels, str)},
    )


def to_numpy(detections: Sequence[Detection]) -> NDArray[np.void]:
    """Structured array [objects]: label, score, xyxy in pixels, box as shares y0, x0, y1, x1."""
    longest = max((len(detection.label) for detection in detections), default=0)
    kinds = [
        ("label", f"U{max(longest, 1)}"),
        ("score", "f4"),
        ("xyxy", "i4", 4),
        ("box", "f4", 4),
    ]
    rows = [(one.label, one.score, one.xyxy, _corners(one.box)) for one in detections]
    return np.array(rows, kinds)


def mask_runs(detection: Detection) -> Rle | None:
    """Runs of a detection's mask; None where there is no mask. Costs no more than its box."""
    if detection.decoded is None:
        return None
    x0, y0, _, _ = detection.xyxy
    part = _mask_in_box(detection, detection.decoded)
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
    decoded = [detection.decoded for detection in detections]
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


def _corners(box: Box) -> tuple[float, float, float, float]:
    return box.y0, box.x0, box.y1, box.x1


def share(score: float) -> float:
    """A mean log-probability as a share, 0..1."""
    return min(math.exp(score), 1.0)


def finite(score: float) -> float:
    """The score, or the most negative float for minus infinity, which JSON does not have."""
    return max(float(score), -sys.float_info.max)
