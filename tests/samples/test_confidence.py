"""What the measure of confidences says of answers whose worth is known."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from paligemma_edge.runtime.loading.loaded_model import LoadedModel
from paligemma_edge.runtime.results.confidence import ObjectLogProbs
from samples.shapes import confidence
from samples.shapes.asked_labels import AskedLabel, ScoredObject, ask
from samples.shapes.confidence import CANDIDATES, calibration_error, measure, plot, rank

CANDIDATE = CANDIDATES["begins x label"]
BOX = (10.0, 10.0, 30.0, 30.0)


def scored(value: float, *, right: bool = True) -> ScoredObject:
    """An object that has half of its doubt in its label."""
    half = math.log(value) / 2
    return ScoredObject(ObjectLogProbs((), half, (-3.0,) * 4, (), (half,)), BOX, 0.0, right)


def label(
    question: int, task: str, *values: float, present: bool = True, forced: float | None = None
) -> AskedLabel:
    objects = tuple(scored(value, right=present) for value in values)
    held = None if forced is None else scored(forced).parts
    return AskedLabel(question, task, "star", present, objects, held)


def test_a_rank_is_how_often_the_first_is_larger() -> None:
    assert rank([0.9, 0.8], [0.1, 0.2]) == 1
    assert rank([0.1], [0.1, 0.2]) == 0.25
    assert math.isnan(rank([], [0.5]))


def test_calibration_is_the_distance_from_what_is_right() -> None:
    values = np.array([0.95, 0.95, 0.15, 0.15])
    assert calibration_error(values, np.array([True, True, False, False])) == pytest.approx(0.1)
    assert calibration_error(values, np.array([True, False, True, False])) == pytest.approx(0.4)


def test_the_figures_are_those_of_the_surest_object_of_each_label() -> None:
    asked = [
        label(0, "detect", 0.9, 0.2),
        label(0, "segment", 0.8),
        label(1, "detect", forced=0.4),
        label(1, "segment", 0.7),
        label(2, "detect", present=False, forced=0.1),
        label(2, "segment", 0.3, present=False),
    ]
    figures = measure(asked, CANDIDATE)
    assert figures.auc == pytest.approx((2 + 2 + 0.5 + 2) / 8)
    assert figures.auc_forced == 1
    assert figures.difference == pytest.approx((0.35, 0.575))  # of 0.1, and of 0.6
    assert figures.present[1] == pytest.approx(0.75)
    assert figures.absent == pytest.approx((0.015, 0.15, 0.285))


def test_a_bundle_is_asked_for_boxes_and_masks_of_the_same_things(
    shapes_loaded: LoadedModel,
) -> None:
    asked = list(ask(shapes_loaded.pipeline, 6))
    boxes, masks = ([one for one in asked if one.task == task] for task in ("detect", "segment"))
    assert [(one.question, one.label) for one in boxes] == [(o.question, o.label) for o in masks]
    found = [one for group in asked for one in group.objects]
    assert any(one.right for one in found)
    for one in found:
        assert one.asked_log_prob <= 1e-6
        assert len(one.parts.corners) == 4 and one.parts.label
    assert all((one.forced is None) == bool(one.objects) for one in asked)
    assert {len(one.parts.codes) for group in masks for one in group.objects} == {16}


def test_the_command_prints_a_table_and_draws_the_reliability(
    shapes_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "reliability.png"
    arguments = ["confidence", str(shapes_bundle), "--count", "2", "--plot", str(file)]
    monkeypatch.setattr("sys.argv", arguments)
    confidence.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 + len(CANDIDATES)
    figures = json.loads(lines[-1])
    assert list(figures) == list(CANDIDATES)
    assert figures["as it is"] == figures["begins x label"]
    with Image.open(file) as drawn:
        assert drawn.format == "PNG" and min(drawn.size) > 300


def test_a_reliability_is_drawn_whatever_there_is() -> None:
    for values in ([], [1.0], [0.0, 0.5, 1.0]):
        data = plot(np.array(values), np.ones(len(values), np.bool_), "a title")
        with Image.open(io.BytesIO(data)) as drawn:
            assert len(np.unique(np.asarray(drawn.convert("L")))) > 10
