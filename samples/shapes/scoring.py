"""Scores answers against the truth with numpy and Pillow only, so that any runtime can be scored.

It parses answers with code of its own, so that it can check the runtime's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from samples.shapes.scenes import SIDE, Scene
from samples.shapes.tasks import ShapesQuestion

# 16 codes to a mask [64, 64], about -1 to 1.
MaskDecoder: TypeAlias = Callable[[Sequence[int]], NDArray[np.float32]]
FloatBox: TypeAlias = tuple[float, float, float, float]
_ON_SHAPE = 0.5  # IoU from which on a box is that of a shape
_OBJECT = re.compile(r"^((?:<loc\d{4}>){4})((?:<seg\d{3}>){16})? ([^;<>]+)$")


@dataclass(frozen=True, eq=False)
class PredictedObject:
    """One object of an answer: y0, x0, y1, x1 in pixels, and a mask [SIDE, SIDE] or None."""

    label: str
    box: FloatBox
    mask: NDArray[np.bool_] | None


# Words, or objects for detect and segment.
ParsedAnswer: TypeAlias = str | Sequence[PredictedObject]
Predictor: TypeAlias = Callable[[Image.Image, Sequence[ShapesQuestion]], Sequence[ParsedAnswer]]


def parse_answer(question: ShapesQuestion, text: str, decode: MaskDecoder) -> ParsedAnswer:
    """The words or objects of a text, as its task has them; what does not parse is left out."""
    if question.task not in ("detect", "segment"):
        return text
    matches = (_OBJECT.match(part) for part in text.split(" ; "))
    return [_parse_object(match, decode) for match in matches if match]


def _parse_object(match: re.Match[str], decode: MaskDecoder) -> PredictedObject:
    y0, x0, y1, x1 = (int(edge) / 1024 * SIDE for edge in re.findall(r"\d{4}", match[1]))
    codes = tuple(int(code) for code in re.findall(r"\d{3}", match[2] or ""))
    box = (y0, x0, y1, x1)
    return PredictedObject(match[3], box, paste(box, decode(codes)) if codes else None)


def score(question: ShapesQuestion, scene: Scene, answer: ParsedAnswer) -> float:
    """1 or 0 for words; the mean IoU of the objects for boxes and masks.

    Where nothing is there that was asked for, 1 for an answer without objects, else 0.
    """
    if isinstance(answer, str):
        return float(answer == question.text)
    if not question.objects:
        return float(not answer)
    pairs = np.zeros((len(question.objects), len(answer)))
    for row, truth in enumerate(question.objects):
        for column, predicted in enumerate(answer):
            if predicted.label == truth.label:
                pairs[row, column] = _overlap(question.task, scene, truth.index, predicted)
    return _matched(pairs) / max(pairs.shape)


def labels_are_right(
    question: ShapesQuestion, scene: Scene, objects: Sequence[PredictedObject]
) -> bool:
    """Whether the labels of an answer are those that are there, each on a shape that has it."""
    there = {named.label for named in question.objects}
    return {one.label for one in objects} == there and all(
        any(
            named.label == one.label
            and box_iou(scene.shapes[named.index].box, one.box) >= _ON_SHAPE
            for named in question.objects
        )
        for one in objects
    )


def _overlap(task: str, scene: Scene, index: int, predicted: PredictedObject) -> float:
    if task == "detect":
        return box_iou(scene.shapes[index].box, predicted.box)
    return 0.0 if predicted.mask is None else mask_iou(scene.mask(index), predicted.mask)


def _matched(pairs: NDArray[np.float64]) -> float:
    """The sum over matched pairs, the best pair first, each object used once."""
    left, total = pairs.copy(), 0.0
    while left.size and left.max() > 0:
        row, column = np.unravel_index(left.argmax(), left.shape)
        total += float(left[row, column])
        left[row, :] = left[:, column] = 0
    return total


def box_iou(one: Sequence[float], two: Sequence[float]) -> float:
    """Intersection over union of two boxes."""
    height = min(one[2], two[2]) - max(one[0], two[0])
    width = min(one[3], two[3]) - max(one[1], two[1])
    shared = max(height, 0.0) * max(width, 0.0)
    union = _area(one) + _area(two) - shared
    return shared / union if union > 0 else 0.0


def _area(box: Sequence[float]) -> float:
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def mask_iou(one: NDArray[np.bool_], two: NDArray[np.bool_]) -> float:
    """Intersection over union of two masks."""
    union = int((one | two).sum())
    return int((one & two).sum()) / union if union else 0.0


def paste(box: FloatBox, decoded: NDArray[np.float32]) -> NDArray[np.bool_]:
    """The decoded square stretched to the box in whole pixels; True where it is over a half."""
    y0, x0, y1, x1 = (round(edge) for edge in box)
    mask = np.zeros((SIDE, SIDE), dtype=np.bool_)
    if y1 <= y0 or x1 <= x0:
        return mask
    soft = np.clip(decoded / 2 + 0.5, 0, 1) * 255
    stretched = Image.fromarray(soft.astype(np.uint8)).resize(
        (x1 - x0, y1 - y0), Image.Resampling.BICUBIC
    )
    mask[y0:y1, x0:x1] = np.asarray(stretched) > 127
    return mask
