"""Scores generated text against the truth; needs numpy and Pillow only, so it fits any runtime."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from samples.shapes.pictures import SIDE, Picture
from samples.shapes.tasks import Question

MaskDecoder: TypeAlias = Callable[
    [Sequence[int]], NDArray[np.float32]
]  # 16 codes to [64, 64], about -1 to 1
Predict: TypeAlias = Callable[[Image.Image, Sequence[str]], Sequence[str]]  # a text per prompt
FloatBox: TypeAlias = tuple[float, float, float, float]
_FOUND = re.compile(r"^((?:<loc\d{4}>){4})((?:<seg\d{3}>){16})? ([^;<>]+)$")


@dataclass(frozen=True)
class Found:
    """One object of an answer: y0, x0, y1, x1 in pixels, and 16 codes or none."""

    label: str
    box: FloatBox
    codes: tuple[int, ...]


def parse(text: str) -> list[Found]:
    """The objects of an answer; a part that cannot be read is left out."""
    matches = (_FOUND.match(part) for part in text.split(" ; "))
    return [_found(match) for match in matches if match]


def _found(match: re.Match[str]) -> Found:
    y0, x0, y1, x1 = (int(edge) / 1024 * SIDE for edge in re.findall(r"\d{4}", match[1]))
    return Found(
        match[3],
        (y0, x0, y1, x1),
        tuple(int(code) for code in re.findall(r"\d{3}", match[2] or "")),
    )


def score(question: Question, picture: Picture, text: str, decode: MaskDecoder) -> float:
    """1 or 0 for words; the mean IoU of the objects for boxes and masks."""
    if question.task not in ("detect", "segment"):
        return float(text == question.text)
    found = parse(text)
    pairs = np.zeros((len(question.things), len(found)))
    for row, thing in enumerate(question.things):
        for column, guess in enumerate(found):
            if guess.label == thing.label:
                pairs[row, column] = _overlap(question.task, picture, thing.index, guess, decode)
    return _matched(pairs) / max(pairs.shape)


def _overlap(task: str, picture: Picture, index: int, guess: Found, decode: MaskDecoder) -> float:
    if task == "detect":
        return box_iou(picture.shapes[index].box, guess.box)
    return mask_iou(picture.mask(index), paste(guess, decode))


def _matched(pairs: NDArray[np.float64]) -> float:
    """The sum over pairs, best pair first, each object used once."""
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


def paste(guess: Found, decode: MaskDecoder) -> NDArray[np.bool_]:
    """The decoded square stretched to the box in whole pixels; inside where it is over a half."""
    y0, x0, y1, x1 = (round(edge) for edge in guess.box)
    mask = np.zeros((SIDE, SIDE), dtype=np.bool_)
    if not guess.codes or y1 <= y0 or x1 <= x0:
        return mask
    soft = np.clip(decode(guess.codes) / 2 + 0.5, 0, 1) * 255
    stretched = Image.fromarray(soft.astype(np.uint8)).resize(
        (x1 - x0, y1 - y0), Image.Resampling.BICUBIC
    )
    mask[y0:y1, x0:x1] = np.asarray(stretched) > 127
    return mask
