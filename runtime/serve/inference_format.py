"""Objects in the form of Roboflow's inference server, which its clients and supervision read.

Source: https://inference.roboflow.com, and `supervision.Detections.from_inference`.
"""

from __future__ import annotations

import uuid

from msgspec import UNSET, Struct, UnsetType, field

from paligemma_edge.runtime.results.detection import Detection
from paligemma_edge.runtime.results.formats import class_number, mask_runs
from paligemma_edge.runtime.results.result import ObjectResult


class InferenceImage(Struct):
    """Size of the image, in pixels."""

    width: int
    height: int


class InferenceRle(Struct):
    """COCO's runs of a mask; the size is height, width."""

    size: tuple[int, int]
    counts: str


class InferencePrediction(Struct):
    """An object: the middle of its box and its size, in pixels."""

    x: float
    y: float
    width: float
    height: float
    confidence: float
    class_name: str = field(name="class")
    class_id: int
    detection_id: str
    rle: InferenceRle | UnsetType = UNSET


class InferenceDocument(Struct):
    """The objects of one image, and the seconds that it took."""

    image: InferenceImage
    predictions: list[InferencePrediction]
    time: float


def inference_document(result: ObjectResult, seconds: float) -> InferenceDocument:
    """A result as `supervision.Detections.from_inference` reads it.

    Boxes and class ids are those of `ObjectResult.to_supervision`. A reader drops all masks where
    one object has none; so they are given where all have one.

    Args:
        result: the objects.
        seconds: that the answer took.

    Example:
        >>> supervision.Detections.from_inference(requests.post(url, ...).json())
    """
    masked = all(one.decoded_mask is not None for one in result)
    predictions = [_prediction(one, result, masked=masked) for one in result]
    return InferenceDocument(InferenceImage(result.width, result.height), predictions, seconds)


def _prediction(detection: Detection, result: ObjectResult, *, masked: bool) -> InferencePrediction:
    x0, y0, x1, y1 = detection.xyxy_normalized
    left, right = sorted((x0 * result.width, x1 * result.width))
    top, bottom = sorted((y0 * result.height, y1 * result.height))
    runs = mask_runs(detection) if masked else None
    return InferencePrediction(
        x=(left + right) / 2,
        y=(top + bottom) / 2,
        width=right - left,
        height=bottom - top,
        confidence=detection.confidence,
        class_name=detection.label,
        class_id=class_number(detection.label, result.classes),
        detection_id=str(uuid.uuid4()),
        rle=UNSET if runs is None else InferenceRle(runs.size, runs.compressed),
    )
