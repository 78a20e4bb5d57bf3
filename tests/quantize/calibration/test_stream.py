"""Graphs in pieces compute what whole graphs do, and calibration counts what they computed."""

from __future__ import annotations

import numpy as np
import pytest

from paligemma_edge.quantize.calibration import stream
from paligemma_edge.quantize.calibration.calibrate import (
    CalibrationSample,
    calibrate,
    pass_questions,
)
from paligemma_edge.quantize.calibration.stream import Run
from paligemma_edge.quantize.graphs.linear import linears, untie_head
from paligemma_edge.quantize.rounding.statistics import PEAK_BLOCK, Moments
from paligemma_edge.runtime import contract
from tests.helpers.half_graphs import Array
from tests.helpers.watched import Case, Values, Whole, assert_same_moments, inputs_of_layers

QUESTIONS = (
    CalibrationSample(0, (2, 411, 97, 1203, 108), (640, 77, 901, 12, 1)),
    CalibrationSample(1, (2, 5, 108), (1600, 1)),
    CalibrationSample(1, (2, 900, 31, 108)),
    CalibrationSample(0, (2, 17, 108), (1,)),
)
ANSWER_WEIGHT = 4
SMALL = 100_000  # bytes of a piece: many pieces even of these models
CLOSE = 1e-4  # of the largest value


@pytest.fixture(scope="module")
def computed(case: Case, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Values, int]]:
    """What whole sessions compute, run by run, and what a token of each counts for."""
    whole = Whole.open(case.graphs(), case.config, tmp_path_factory.mktemp("whole") / "graphs")
    seen = [whole.see(pixels) for pixels in case.pixels]
    found = [(vision, 1) for vision, _ in seen] + [(projector, 1) for _, projector in seen]
    for sample in QUESTIONS:
        prompt, answer = whole.read(seen[sample.image][1][contract.IMAGE_FEATURES], sample)
        found += [(prompt, 1), (answer, ANSWER_WEIGHT)] if answer else [(prompt, 1)]
    return found


def streamed(case: Case, stages: list[str]) -> list[Values]:
    """What `pass_questions` computes, in the same order."""
    graphs = case.graphs()
    wanted = {name: inputs_of_layers(model) for name, model in graphs.items()}
    wanted[contract.DECODER].add(contract.LOGITS)
    runs: dict[str, list[tuple[Run, Values]]] = {name: [] for name in graphs}

    def observe(graph: str, name: str, array: Array, run: Run) -> None:
        found = next((values for one, values in runs[graph] if one is run), None)
        if found is None:
            found = {}
            runs[graph].append((run, found))
        found[name] = array

    pass_questions(
        graphs,
        case.config,
        list(case.pixels),
        QUESTIONS,
        wanted=wanted,
        observe=observe,
        progress=lambda stage, *_: stages.append(stage),
    )
    return [values for found in runs.values() for _, values in found]


@pytest.mark.parametrize("pieces", ["one", "many"])
def test_pieces_compute_what_the_whole_graph_does(
    pieces: str,
    case: Case,
    computed: list[tuple[Values, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The answer as one causal chunk too: whole sessions answer token by token."""
    if pieces == "many":
        monkeypatch.setattr(stream, "PIECE_BYTES", SMALL)
        monkeypatch.setattr(stream, "_MAX_GATHERED", SMALL)
    stages: list[str] = []
    found = streamed(case, stages)
    assert stages.count(contract.DECODER) > 5 if pieces == "many" else len(stages) == 3
    for ours, (whole, _) in zip(found, computed, strict=True):
        for name, array in ours.items():
            rows, expected = _flat(array), _flat(whole[name])
            scale = np.abs(expected).max()
            np.testing.assert_allclose(rows, expected, rtol=0, atol=CLOSE * scale, err_msg=name)


def test_moments_are_those_of_the_values(case: Case, computed: list[tuple[Values, int]]) -> None:
    graphs = case.graphs()
    moments = calibrate(graphs, case.config, list(case.pixels), QUESTIONS, second=True)
    layers = [layer for model in graphs.values() for layer in linears(model)]
    assert set(moments) == {layer.name for layer in layers}
    for layer in layers:
        name = str(layer.input.name)
        read = [(_flat(values[name]), weight) for values, weight in computed if name in values]
        expected = moments_by_hand(
            np.concatenate([rows for rows, _ in read]).astype(np.float64),
            np.concatenate([np.full(len(rows), weight) for rows, weight in read]),
        )
        found = moments[layer.name]
        assert_same_moments(found, expected, layer.name)
        np.testing.assert_allclose(found.peaks, expected.peaks, rtol=1e-3, err_msg=layer.name)
        assert found.peak == pytest.approx(expected.peak, rel=1e-3)


def moments_by_hand(rows: Array, weights: Array) -> Moments:
    shares, sizes = weights / weights.sum(), np.abs(rows)
    width = rows.shape[1]
    peaks = [sizes[:, i : i + PEAK_BLOCK].max(axis=1) for i in range(0, width, PEAK_BLOCK)]
    return Moments(
        largest=sizes.max(axis=0),
        squares=shares @ rows**2,
        peaks=np.array([shares @ peak**2 for peak in peaks]),
        peak=float(shares @ sizes.max(axis=1) ** 2),
        second=((rows * shares[:, None]).T @ rows,),
    )


def test_second_moments_are_kept_only_where_they_are_asked_for(case: Case) -> None:
    graphs = case.graphs()
    untie_head(graphs[contract.DECODER])
    moments = calibrate(graphs, case.config, list(case.pixels), QUESTIONS[1:2], second=False)
    assert all(found.second == () for found in moments.values())
    assert set(moments) == {x.name for model in graphs.values() for x in linears(model)}


def _flat(array: Array) -> Array:
    return array.reshape(-1, array.shape[-1])
