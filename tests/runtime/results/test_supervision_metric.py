"""supervision's metric says the same of our detections as of those that its own parser reads."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import pytest

from paligemma_edge.runtime.results.result import ObjectResult
from tests.runtime.results.test_build import answered

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "OpenCV .* is not installed", UserWarning)
    import supervision as sv
    from supervision.metrics import MeanAveragePrecision

CLASSES = ["cat", "dog", "red-panda"]
LABELS = [*CLASSES, "black cat", "owl"]  # the last are not asked for
IMAGES = 24
SIZE = (60, 40)  # of `answered`, width and height


def location(values: Sequence[int]) -> str:
    return "".join(f"<loc{value:04}>" for value in values)


def scenes() -> list[tuple[str, sv.Detections]]:
    """Answers and the truth about them: boxes that moved a little, some missed, some invented."""
    random = np.random.default_rng(7)
    made = []
    for _ in range(IMAGES):
        count = int(random.integers(0, 5))
        corners = np.sort(random.integers(0, 1024, (count, 2, 2)), axis=1).reshape(count, 4)
        labels = [LABELS[place] for place in random.integers(0, len(LABELS), count)]
        moved = np.clip(corners + random.integers(-90, 90, corners.shape), 0, 1023)
        said = " ; ".join(
            f"{location([int(number) for number in box])} {label}"
            for box, label in zip(moved, labels, strict=True)
        )
        known = [place for place, label in enumerate(labels) if label in CLASSES]
        xyxy = corners[known][:, [1, 0, 3, 2]] / 1024 * [SIZE[0], SIZE[1], SIZE[0], SIZE[1]]
        ids = np.array([CLASSES.index(labels[place]) for place in known], int)
        made.append((said, sv.Detections(xyxy=xyxy.reshape(-1, 4), class_id=ids)))
    return made


def theirs(text: str) -> sv.Detections:
    return sv.Detections.from_vlm(sv.VLM.PALIGEMMA, text, resolution_wh=SIZE, classes=list(CLASSES))


def of_classes(result: ObjectResult) -> sv.Detections:
    """What is left of ours when labels that are not asked for are filtered out, as theirs are."""
    found = result.to_supervision()
    assert found.class_id is not None
    kept = found[found.class_id < len(CLASSES)]
    assert isinstance(kept, sv.Detections)
    return kept


def metric(
    predicted: Sequence[sv.Detections], truth: Sequence[sv.Detections]
) -> tuple[list[float], list[list[float]]]:
    found = MeanAveragePrecision().update(list(predicted), list(truth)).compute()
    return found.mAP_scores.tolist(), found.ap_per_class.tolist()


def asked(text: str) -> ObjectResult:
    return answered(text, f"detect {' ; '.join(CLASSES)}")


def test_the_boxes_and_ids_are_those_of_its_parser() -> None:
    for text, _ in scenes():
        mine, own = of_classes(asked(text)), theirs(text)
        assert np.array_equal(mine.xyxy, own.xyxy)
        assert np.array_equal(mine.class_id, own.class_id)  # type: ignore[arg-type]
        assert np.array_equal(mine.data["class_name"], own.data["class_name"])


@pytest.mark.parametrize("with_confidence", [False, True])
def test_the_metric_is_that_over_its_parser(with_confidence: bool) -> None:
    """Its parser knows no confidence: both have none, or both have ours."""
    mine, own, truth = [], [], []
    for text, boxes in scenes():
        found, read = asked(text).to_supervision(), theirs(text)
        if with_confidence:
            read.confidence = of_classes(asked(text)).confidence
        else:
            found.confidence = None
        mine.append(found)
        own.append(read)
        truth.append(boxes)
    assert metric(mine, truth) == metric(own, truth)
    assert 0.05 < metric(mine, truth)[0][0] < 1
