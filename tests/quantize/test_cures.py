"""Passes that keep the function: the logits stay, and what they are for is really reached."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from paligemma_edge.quantize.apply import Graphs, cure, prepare
from paligemma_edge.quantize.calibrate import Asked, calibrate
from paligemma_edge.quantize.derived import Float, matrix_rows
from paligemma_edge.quantize.fold import NORMS, float_of, fold_gains
from paligemma_edge.quantize.linear import EMBEDDING, HEAD, WEIGHT, Linear, linears, untie_head
from paligemma_edge.quantize.prefill import prefill_of
from paligemma_edge.quantize.recipe import Recipe
from paligemma_edge.quantize.rotation import Rotation, rotate_columns
from paligemma_edge.quantize.smooth import smooth
from paligemma_edge.quantize.statistics import Moments
from paligemma_edge.runtime import contract
from tests.quantize.half_graphs import Array, answers
from tests.quantize.watched import Case, inputs_of_layers, watch

PLAIN = Recipe(about="a test", weights="int8", fold=False, name="cpu-test")
FOLDED = Recipe(about="a test", weights="int8", name="cpu-test")
ROTATED = Recipe(about="a test", weights="int8", rotate=True, name="cpu-test")
QUESTIONS = (Asked(0, (2, 411, 97, 1203, 108), (640, 77, 901, 12, 1)), Asked(1, (2, 5, 108)))
CLOSE = 1e-4  # of the largest value
FACTOR = np.float32(60)
CHANNEL = 5
VISION, DECODER = contract.VISION_ENCODER, contract.DECODER


@pytest.fixture(scope="module")
def exact(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Array:
    """The logits of the graphs as they are, after a prompt and after one step."""
    return answers(
        case.graphs(), case.facts, case.pixels[:1], tmp_path_factory.mktemp("exact") / "graphs"
    )


Same = Callable[[Graphs], None]


@pytest.fixture
def assert_same(case: Case, exact: Array, tmp_path: Path) -> Same:
    def assert_same(graphs: Graphs) -> None:
        found = answers(graphs, case.facts, case.pixels[:1], tmp_path / "changed")
        np.testing.assert_allclose(found, exact, rtol=0, atol=CLOSE * np.abs(exact).max())

    return assert_same


def norms(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type in NORMS]


def by_name(graphs: Graphs) -> dict[str, Linear]:
    return {layer.name: layer for model in graphs.values() for layer in linears(model)}


def matrix(layer: Linear) -> Float:
    return matrix_rows(layer.tensor, 0, layer.out_features, layer.columns_first)


def moments_of(graphs: Graphs, case: Case) -> dict[str, Moments]:
    return calibrate(graphs, case.facts, list(case.pixels), QUESTIONS, second=True)


# --- fold


def test_folded_norms_have_neither_gain_nor_shift(case: Case, assert_same: Same) -> None:
    graphs = case.graphs()
    before = norms(graphs[DECODER])
    assert all(np.abs(float_of(norm.inputs[1]) - 1).max() > 0.01 for norm in before)
    untie_head(graphs[DECODER])
    for name in (VISION, DECODER):
        fold_gains(graphs[name])
    *inner, last = norms(graphs[VISION])
    for norm in norms(graphs[DECODER]) + inner:
        assert np.all(float_of(norm.inputs[1]) == 1)
    assert len(norms(graphs[DECODER])) == 2 * case.facts.num_layers + 1
    assert all(np.all(float_of(norm.inputs[2]) == 0) for norm in inner)
    assert np.any(float_of(last.inputs[1]) != 1)  # its reader is in another graph
    assert_same(graphs)


def test_a_fold_changes_the_head_and_not_the_embedding(case: Case) -> None:
    before = case.graphs()[DECODER].graph.initializers[EMBEDDING + WEIGHT].const_value
    decoder = cure(case.graphs(), FOLDED).graphs[DECODER]
    after = decoder.graph.initializers[EMBEDDING + WEIGHT].const_value
    assert before is not None
    assert after is not None
    np.testing.assert_array_equal(after.numpy(), before.numpy())
    head = by_name({DECODER: decoder})[HEAD]
    gain = float_of(norms(case.graphs()[DECODER])[-1].inputs[1])
    np.testing.assert_allclose(matrix(head), before.numpy().astype(np.float32) * gain, rtol=1e-6)


# --- rotate


@pytest.mark.parametrize("size", [192, 72, 48, 2048, 17, 1, 2])
def test_a_rotation_is_orthogonal_and_spreads_a_channel(size: int) -> None:
    rotation = Rotation.of_size(size)
    whole = np.kron(rotation.left, rotation.right).astype(np.float64)
    assert rotation.size == size == len(whole)
    np.testing.assert_allclose(whole @ whole.T, np.eye(size), atol=1e-5)
    assert np.abs(whole).max() <= 1.5 / np.sqrt(size) or size < 3
    x = np.random.default_rng(0).normal(size=(5, size)).astype(np.float32)
    np.testing.assert_allclose(rotation.apply(x), x @ whole, atol=1e-5)
    np.testing.assert_allclose(rotate_columns(rotation, x.T.copy()), whole.T @ x.T, atol=1e-5)
    again = Rotation.of_size(size)
    assert np.array_equal(rotation.left, again.left)
    assert np.array_equal(rotation.right, again.right)


def test_a_rotation_keeps_the_common_part_of_all_channels_apart() -> None:
    even = np.ones((1, 192), np.float32)
    assert np.abs(Rotation.of_size(192).apply(even)).max() < 6  # of sqrt(192) = 13.9


def test_a_rotated_decoder_has_the_same_logits(case: Case, assert_same: Same) -> None:
    assert_same(cure(case.graphs(), ROTATED).graphs)


def test_an_outlier_channel_of_the_stream_is_spread(case: Case, tmp_path: Path) -> None:
    width = case.facts.hidden_size
    features = np.random.default_rng(2).normal(size=(1, case.facts.image_tokens, width))
    features[..., CHANNEL] *= FACTOR
    peaks = {}
    for name, recipe in (("folded", FOLDED), ("rotated", ROTATED)):
        decoder = cure(case.graphs(), recipe).graphs[DECODER]
        read = inputs_of_qkv(decoder, features.astype(np.float32), case, tmp_path / f"{name}.onnx")
        peaks[name] = np.median([_peak(values) for values in read.values()])
    assert peaks["folded"] > 0.7 * np.sqrt(width)
    assert peaks["rotated"] < 0.4 * peaks["folded"]


def test_a_rotation_turns_each_head_of_the_values(case: Case) -> None:
    folded, rotated = (by_name(cure(case.graphs(), r).graphs) for r in (FOLDED, ROTATED))
    size, name = case.facts.head_dim, "decoder.layers.0.qkv_proj"
    stream = Rotation.of_size(case.facts.hidden_size)
    before, after = stream.apply(matrix(folded[name])), matrix(rotated[name])
    values = case.facts.num_kv_heads * size
    np.testing.assert_allclose(after[:-values], before[:-values], atol=1e-5)
    whole = np.kron(Rotation.of_size(size).left, Rotation.of_size(size).right)
    for start in range(len(after) - values, len(after), size):
        head = slice(start, start + size)
        np.testing.assert_allclose(after[head], whole.T @ before[head], atol=1e-4)


def inputs_of_qkv(
    decoder: ir.Model, features: Array, case: Case, path: Path
) -> dict[str, Array]:
    names = {
        str(layer.input.name) for layer in linears(decoder) if layer.name.endswith("qkv_proj")
    }
    length = case.facts.image_tokens + 2
    row = (1, case.facts.num_kv_heads, length, case.facts.head_dim)
    pasts = [n for layer in range(case.facts.num_layers) for n in contract.past_names(layer)]
    feeds: Mapping[str, Array] = {
        contract.IMAGE_FEATURES: features,
        contract.INPUT_IDS: np.array([[2, 108]]),
        contract.SEQLENS_K: np.array([length - 1], np.int32),
        contract.TOTAL_SEQUENCE_LENGTH: np.array(length, np.int32),
        **{name: np.zeros(row, np.float32) for name in pasts},
    }
    found = watch(decoder, names, path).run(sorted(names), feeds)
    return dict(zip(sorted(names), found, strict=True))


def _peak(values: Array) -> float:
    """The largest channel of a token beside the root of their mean square, in the median."""
    rows = values.reshape(-1, values.shape[-1])
    return float(np.median(np.abs(rows).max(axis=1) / np.sqrt(np.square(rows).mean(axis=1))))


# --- smooth


@pytest.mark.parametrize("known", [True, False], ids=["calibrated", "from weights"])
def test_smoothing_keeps_the_logits(known: bool, case: Case, assert_same: Same) -> None:
    graphs = case.graphs()
    moments: Mapping[str, Moments] = moments_of(graphs, case) if known else {}
    for name in (VISION, DECODER):
        smooth(graphs[name], moments, 0.5, norms=known)
    assert_same(graphs)


def test_smoothing_makes_inputs_as_uneven_as_their_columns(case: Case) -> None:
    """With a strength of one half: equation 4 of the paper."""
    graphs = case.graphs()
    untie_head(graphs[DECODER])
    before = moments_of(graphs, case)
    told: dict[str, Moments] = {}
    for name in (VISION, DECODER):
        told |= smooth(graphs[name], before, 0.5, norms=True)
    after = moments_of(graphs, case)
    smoothed = [x for x in by_name(graphs) if not x.endswith((".fc2", ".o_proj", "projector"))]
    assert len(smoothed) > 2 * case.facts.num_layers + 4
    for name in smoothed:
        found, layer = after[name], by_name(graphs)[name]
        assert _unevenness(found.largest) < _unevenness(before[name].largest)
        assert_same_moments(told[name], found, name)
        if name.endswith((".down_proj", ".out_proj")):
            ratios = found.largest / np.abs(matrix(layer)).max(axis=0)
            np.testing.assert_allclose(ratios, np.median(ratios), rtol=2e-3, err_msg=name)


def test_planted_channels_are_as_if_they_had_never_been(case: Case) -> None:
    plain, planted = case.graphs(), case.graphs()
    plant_products(planted, case)
    largest = []
    for graphs in (plain, planted):
        moments = moments_of(graphs, case)
        for name in (VISION, DECODER):
            moments |= smooth(graphs[name], moments, 0.5, norms=False)
        largest.append({name: found.largest for name, found in moments.items()})
    for name in largest[0]:
        if name.endswith((".down_proj", ".out_proj")):
            ratios = largest[1][name] / largest[0][name]
            np.testing.assert_allclose(ratios, np.median(ratios), rtol=2e-3, err_msg=name)


def test_planting_is_seen_without_smoothing(case: Case) -> None:
    planted = case.graphs()
    before = moments_of(case.graphs(), case)
    plant_products(planted, case)
    after = moments_of(planted, case)
    for name in ("decoder.layers.1.down_proj", "vision.layers.1.out_proj"):
        ratios = after[name].largest / before[name].largest
        assert ratios[CHANNEL] == pytest.approx(FACTOR, rel=1e-2)
        assert np.delete(ratios, CHANNEL) == pytest.approx(1, rel=1e-2)


def plant_products(graphs: Graphs, case: Case) -> None:
    """One channel of each linear product is huge; the function is the same."""
    layers = by_name(graphs)
    for name, layer in layers.items():
        if name.endswith(".up_proj"):
            _scale_row(layer, CHANNEL)
            _scale_column(layers[name.replace("up_proj", "down_proj")], CHANNEL)
        if name.endswith(".qkv_proj") and layer.bias is not None:
            out = layers[name.replace("qkv_proj", "out_proj")]
            row = layer.out_features - out.in_features + CHANNEL
            _scale_row(layer, row)
            _scale_column(out, CHANNEL)
            bias = float_of(layer.bias).copy()
            bias[row] *= FACTOR
            put_float(layer.bias, bias)


def _scale_row(layer: Linear, row: int) -> None:
    def change(rows: Float, start: int) -> Float:
        if start <= row < start + len(rows):
            rows[row - start] *= FACTOR
        return rows

    layer.change(change)


def _scale_column(layer: Linear, column: int) -> None:
    def change(rows: Float, _: int) -> Float:
        rows[:, column] /= FACTOR
        return rows

    layer.change(change)


def _unevenness(largest: Float) -> float:
    return float(np.std(np.log(largest[largest > 0])))


# --- a graph of its own for prompts, and all passes together


def test_a_prefill_graph_makes_the_same_keys_and_values(case: Case, tmp_path: Path) -> None:
    decoder = case.graphs()[DECODER]
    prefill = prefill_of(decoder)
    names = [layer.name for layer in linears(prefill)]
    last = case.facts.num_layers - 1
    assert [name for name in names if f".{last}." in name] == [f"prefill.layers.{last}.qkv_proj"]
    assert len(names) == len(linears(decoder)) - 5  # without the last block's other four, and head
    assert all(value.name != contract.LOGITS for value in prefill.graph.outputs)
    assert contract.LOGITS in [value.name for value in decoder.graph.outputs]
    features = np.random.default_rng(2).normal(
        size=(1, case.facts.image_tokens, case.facts.hidden_size)
    )
    presents = [n for i in range(case.facts.num_layers) for n in contract.present_names(i)]
    found = [
        run_prompt(model, features.astype(np.float32), case, presents, tmp_path / f"{i}.onnx")
        for i, model in enumerate((decoder, prefill))
    ]
    for name in presents:
        np.testing.assert_allclose(found[1][name], found[0][name], rtol=0, atol=1e-5)


def test_all_cures_together_keep_the_logits(case: Case, assert_same: Same) -> None:
    cured = cure(case.graphs(), ROTATED)
    moments = moments_of(cured.graphs, case)
    recipe = Recipe(about="a test", weights="int8", rotate=True, smooth=0.7, name="cpu-test")
    assert_same(prepare(cured, recipe, moments).graphs)


def test_graphs_that_are_cured_are_left_as_they_are(case: Case, exact: Array, tmp_path: Path) -> None:
    graphs = case.graphs()
    cured = cure(graphs, ROTATED)
    before = {name: float(np.abs(matrix(x)).sum()) for name, x in by_name(cured.graphs).items()}
    recipe = Recipe(about="a test", weights="int8", rotate=True, smooth=0.7, name="cpu-test")
    prepare(cured, recipe, moments_of(cured.graphs, case))
    after = {name: float(np.abs(matrix(x)).sum()) for name, x in by_name(cured.graphs).items()}
    assert after == before
    np.testing.assert_array_equal(
        answers(graphs, case.facts, case.pixels[:1], tmp_path / "again"), exact
    )
