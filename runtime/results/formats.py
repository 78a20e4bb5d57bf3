"""Objects in the forms that other programs read: JSON, COCO, supervision, a NumPy array.

Knows those forms. Knows nothing of a model, of files, or of how an answer was read.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from paligemma_edge.runtime.errors import MissingExtraError, OptionError
from paligemma_edge.runtime.results import rle
from paligemma_edge.runtime.results.mask import inside, paste_mask
from paligemma_edge.runtime.results.rle import Rle
from paligemma_edge.runtime.text.parse_answer import Box
from paligemma_edge.runtime.text.tasks import Task

if TYPE_CHECKING:
    import supervision

    from paligemma_edge.runtime.results.result import Detection, ObjectResult

_WHOLE = Box(0, 0, 1, 1)
_CLASS_NAME = "class_name"  # supervision.config.CLASS_NAME_DATA_FIELD


def to_json(result: ObjectResult) -> dict[str, Any]:
    """The fields as JSON that every reader takes: no NaN, no infinity.

    Each object has `box`, x0, y0, x1, y1 in pixels, `box_normalised`, the same as shares of
    the sides, and `mask` where there is one, as pycocotools writes it.
    """
    fields = {
        "prompt": result.prompt,
        "text": result.text,
        "score": finite(result.score),
        "truncated": result.truncated,
        "width": result.width,
        "height": result.height,
        "objects": [_object_json(found) for found in result.objects],
    }
    return fields | ({"notes": list(result.notes)} if result.notes else {})


def to_coco(
    result: ObjectResult, *, image_id: int, categories: Mapping[str, int] | None, first_id: int
) -> list[dict[str, Any]]:
    """COCO annotations with ids from `first_id` on, at least 1: COCO's tools take 0 for none.

    Without `categories`, the labels that were asked for are 1, 2, 3, and others follow.

    A box without pixels is left out, for COCO has no place for it. `bbox` is the answer's box,
    x, y, width, height in pixels; `area` is the mask's, the box's where there is none; `score`
    is exp(score), 0..1. OptionError for a label that `categories` lacks.
    """
    if not isinstance(first_id, int) or first_id < 1:
        raise OptionError(
            f"first_id is {first_id!r}, wanted 1 or more; COCO's tools take 0 for none"
        )
    if categories is None:
        names = (*(Task.of(result.prompt).labels or ()), *(found.label for found in result.objects))
        categories = {name: number for number, name in enumerate(dict.fromkeys(names), 1)}
    elif not isinstance(categories, Mapping):
        raise OptionError(f"categories is {categories!r:.80}, wanted the id of each label")
    known = categories

    def annotations() -> Iterator[dict[str, Any]]:
        for found in filter(_has_pixels, result.objects):
            category = _category(found.label, known)
            yield coco_annotation(_object_json(found), image_id=image_id, category_id=category)

    return [{"id": number, **fields} for number, fields in enumerate(annotations(), first_id)]


def coco_annotation(found: Mapping[str, Any], *, image_id: int, category_id: int) -> dict[str, Any]:
    """A COCO annotation, all but its id, of an object as `to_json` gives it."""
    x0, y0, x1, y1 = found["box"]
    fields = {
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": (x1 - x0) * (y1 - y0),
        "iscrowd": 0,
        "score": share(found["score"]),
    }
    if "mask" not in found:
        return fields
    return fields | {"area": rle.area(found["mask"]["counts"]), "segmentation": found["mask"]}


def to_supervision(result: ObjectResult) -> supervision.Detections:
    """`supervision.Detections` of all objects, in order; boxes without pixels included.

    Float32 `xyxy` in pixels; `mask` bool [objects, height, width], None where no object has
    one; `confidence` is exp(score); `class_id` counts labels as they first appear in this
    answer, and `data["class_name"]` holds them. MissingExtraError without that package.
    """
    try:
        import supervision
    except ModuleNotFoundError as missing:
        if missing.name != "supervision":
            raise
        raise MissingExtraError(
            "the package supervision is not installed, and its Detections were asked for; "
            "run: pip install supervision"
        ) from None
    labels = [found.label for found in result.objects]
    names = list(dict.fromkeys(labels))
    return supervision.Detections(
        xyxy=np.array([found.xyxy for found in result.objects], np.float32).reshape(-1, 4),
        mask=_stacked_masks(result),
        confidence=np.array([share(found.score) for found in result.objects], np.float32),
        class_id=np.array([names.index(label) for label in labels], int),
        data={_CLASS_NAME: np.array(labels, str)},
    )


def to_numpy(result: ObjectResult) -> NDArray[np.void]:
    """Structured array [objects]: label, score, xyxy in pixels, box as shares y0, x0, y1, x1."""
    longest = max((len(found.label) for found in result.objects), default=0)
    kinds = [
        ("label", f"U{max(longest, 1)}"),
        ("score", "f4"),
        ("xyxy", "i4", 4),
        ("box", "f4", 4),
    ]
    rows = [(found.label, found.score, found.xyxy, _corners(found.box)) for found in result.objects]
    return np.array(rows, kinds)


def mask_runs(found: Detection) -> Rle | None:
    """Runs of an object's mask; None where there is no mask. Costs no more than its box."""
    if found.decoded is None:
        return None
    x0, y0, _, _ = found.xyxy
    part = _mask_in_box(found, found.decoded)
    return rle.encode(part, at=(y0, x0), size=(found.height, found.width))


def _object_json(found: Detection) -> dict[str, Any]:
    y0, x0, y1, x1 = _corners(found.box)
    fields = {
        "label": found.label,
        "score": finite(found.score),
        "box": list(found.xyxy),
        "box_normalised": [x0, y0, x1, y1],
    }
    runs = mask_runs(found)
    return fields if runs is None else fields | {"mask": runs.to_json()}


def _category(label: str, categories: Mapping[str, int]) -> int:
    if label not in categories:
        known = ", ".join(repr(name) for name in list(categories)[:8]) or "none"
        raise OptionError(
            f"the answer names {label!r:.80}, and the categories are {known:.200}; add it to them"
        )
    return categories[label]


def _stacked_masks(result: ObjectResult) -> NDArray[np.bool_] | None:
    """Masks, bool [objects, height, width]; empty for the objects without, None if all are."""
    decoded = [found.decoded for found in result.objects]
    if all(values is None for values in decoded):
        return None
    masks = np.zeros((len(result.objects), result.height, result.width), np.bool_)
    for found, values, mask in zip(result.objects, decoded, masks, strict=True):
        if values is not None and _has_pixels(found):
            x0, y0, x1, y1 = found.xyxy
            mask[y0:y1, x0:x1] = _mask_in_box(found, values)
    return masks


def _mask_in_box(found: Detection, decoded: NDArray[np.float32]) -> NDArray[np.bool_]:
    """What `Detection.mask` holds in its box; without pixels where the box has none."""
    x0, y0, x1, y1 = found.xyxy
    return inside(paste_mask(decoded, _WHOLE, max(x1 - x0, 0), max(y1 - y0, 0)))


def _has_pixels(found: Detection) -> bool:
    x0, y0, x1, y1 = found.xyxy
    return x1 > x0 and y1 > y0


def _corners(box: Box) -> tuple[float, float, float, float]:
    return box.y0, box.x0, box.y1, box.x1


def share(score: float) -> float:
    """A mean log-probability as a share, 0..1."""
    return min(math.exp(score), 1.0)


def finite(score: float) -> float:
    """JSON has no minus infinity, which is the score of what a model held to be impossible."""
    return max(float(score), -sys.float_info.max)
