"""Passes that keep the function: the logits stay, and what they are for is really reached."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from paligemma_edge.quantize.graphs.linear import EMBEDDING, HEAD, WEIGHT, linears, untie_head
from paligemma_edge.quantize.graphs.prefill import has_windows, prefill_of, whole_prompt
from paligemma_edge.quantize.recipes.recipe import Recipe
from paligemma_edge.quantize.transforms.fold import NORMS, float_of, fold_gains, put_float
from paligemma_edge.quantize.transforms.rotation import Rotation, rotate_columns
from paligemma_edge.quantize.variant.passes import prepare, transform
from paligemma_edge.runtime import contract
from tests.helpers.half_graphs import Array, answers
from tests.helpers.watched import AssertSame, Case, by_name, matrix, read_prompt

FOLDED = Recipe(about="a test", weights="int8", name="cpu-folded")
ROTATED = Recipe(about="a test", weights="int8", rotate=True, name="cpu-rotated")
ALL = Recipe(about="a test", weights="int8", rotate=True, smooth=0.7, name="cpu-all")
VISION, DECODER = contract.VISION_ENCODER, contract.DECODER
# Of Gemma 2: nothing that they are read by has a weight to take their gain.
POST_NORMS = {"post_attention_layernorm", "post_feedforward_layernorm"}


def norms(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type in NORMS]


def test_folded_norms_have_neither_gain_nor_shift(case: Case, assert_same: AssertSame) -> None:
    graphs = case.graphs()
    before = gains(graphs[DECODER])
    assert all(np.abs(gain - 1).max() > 0.01 for gain in before.values())
    untie_head(graphs[DECODER])
    for name in (VISION, DECODER):
        fold_gains(graphs[name])
    *inner, last = norms(graphs[VISION])
    found = gains(graphs[DECODER])
    folded = {name for name, gain in found.items() if np.all(gain == 1)}
    assert len(folded) == 2 * case.config.num_layers + 1
    assert {name.split(".")[-2] for name in set(found) - folded} <= POST_NORMS
    assert all(np.array_equal(found[name], before[name]) for name in set(found) - folded)
    assert all(np.all(float_of(n.inputs[1]) == 1) for n in inner)
    assert all(np.all(float_of(norm.inputs[2]) == 0) for norm in inner)
    assert np.any(float_of(last.inputs[1]) != 1)  # what reads it is in another graph
    assert_same(graphs)


def gains(model: ir.Model) -> dict[str, Array]:
    return {str(n.inputs[1] and n.inputs[1].name): float_of(n.inputs[1]) for n in norms(model)}


def test_a_fold_changes_the_head_and_not_the_embedding(case: Case) -> None:
    decoder = transform(case.graphs(), FOLDED).graphs[DECODER]
    tables = [m.graph.initializers[EMBEDDING + WEIGHT] for m in (case.graphs()[DECODER], decoder)]
    before, after = (t.const_value.numpy() for t in tables if t.const_value is not None)
    np.testing.assert_array_equal(after, before)
    gain = float_of(norms(case.graphs()[DECODER])[-1].inputs[1])
    head = matrix(by_name({DECODER: decoder})[HEAD])
    np.testing.assert_allclose(head, before.astype(np.float32) * gain, rtol=1e-6)


@pytest.mark.parametrize("size", [192, 72, 48, 2048, 17, 2])
def test_a_rotation_is_orthogonal_and_spreads_every_channel(size: int) -> None:
    rotation = Rotation.of_size(size)
    whole = np.kron(rotation.left, rotation.right).astype(np.float64)
    assert rotation.size == len(whole) == size
    np.testing.assert_allclose(whole @ whole.T, np.eye(size), atol=1e-5)
    assert np.abs(whole).max() < 1.5 / np.sqrt(size)
    x = np.random.default_rng(0).normal(size=(5, size)).astype(np.float32)
    np.testing.assert_allclose(rotation.apply(x), x @ whole, atol=1e-4)
    np.testing.assert_allclose(rotate_columns(rotation, x.T.copy()), whole.T @ x.T, atol=1e-4)
    again = Rotation.of_size(size)
    assert np.array_equal(rotation.left, again.left)
    assert np.array_equal(rotation.right, again.right)


def test_a_rotation_does_not_gather_what_is_common_to_all_channels() -> None:
    even = np.ones((1, 192), np.float32)
    assert np.abs(Rotation.of_size(192).apply(even)).max() < 0.5 * np.sqrt(192)


def test_a_rotated_decoder_has_the_same_logits(case: Case, assert_same: AssertSame) -> None:
    assert_same(transform(case.graphs(), ROTATED).graphs)


@pytest.mark.parametrize("case", ["shapes", "odd"], indirect=True)
def test_an_outlier_channel_of_the_stream_is_spread(case: Case, tmp_path: Path) -> None:
    features = case.features()
    features[..., 5] *= 60
    peaks = {}
    for recipe in (FOLDED, ROTATED):
        transformed = transform(case.graphs(), recipe)
        assert transformed.notes == ()
        decoder, config = transformed.graphs[DECODER], case.config
        read = read_prompt(decoder, features, config, tmp_path / f"{recipe.name}.onnx")
        inputs = {str(x.input.name) for x in linears(decoder) if x.name.endswith("qkv_proj")}
        assert len(inputs) == config.num_layers
        peaks[recipe.name] = [peak(read[name]) for name in sorted(inputs)]
    assert max(peaks["cpu-folded"]) > 0.9 * np.sqrt(case.config.hidden_size)
    assert max(peaks["cpu-rotated"]) < 0.4 * max(peaks["cpu-folded"])


@pytest.mark.parametrize("case", ["gemma2"], indirect=True)
def test_where_the_stream_cannot_be_rotated_its_readers_are_smoothed(case: Case) -> None:
    graphs, planted = case.graphs(), np.ones(case.config.hidden_size, np.float32)
    planted[5] = 60
    for norm in norms(graphs[DECODER]):
        if POST_NORMS & set(str(norm.inputs[1] and norm.inputs[1].name).split(".")):
            put_float(norm.inputs[1], float_of(norm.inputs[1]) * planted)
    transformed = transform(graphs, ALL)
    assert transformed.head_input.rotation is None
    assert ["stream is not rotated" in note for note in transformed.notes] == [True]
    before = case.moments(transformed.graphs)
    smoothed = prepare(transformed, ALL, before)
    assert smoothed.notes == transformed.notes
    after = case.moments(smoothed.graphs)
    readers = [n for n in after if n.endswith((".gate_proj", ".lm_head"))]
    assert len(readers) == case.config.num_layers + 1
    for name in readers:
        assert excess(before[name].largest, 5) > 4 * excess(after[name].largest, 5), name


def test_a_stream_that_was_to_stay_is_no_matter_of_a_note(case: Case) -> None:
    assert transform(case.graphs(), FOLDED).notes == ()


def excess(largest: Array, channel: int) -> float:
    return float(largest[channel] / np.median(largest))


def peak(values: Array) -> float:
    """How far the largest channel of a token is above the root of their mean square: median."""
    rows = values.reshape(-1, values.shape[-1])
    return float(np.median(np.abs(rows).max(axis=1) / np.sqrt(np.square(rows).mean(axis=1))))


def test_a_rotation_turns_each_head_of_the_values(case: Case) -> None:
    folded, rotated = (by_name(transform(case.graphs(), r).graphs) for r in (FOLDED, ROTATED))
    size, name = case.config.head_dim, "decoder.layers.0.qkv_proj"
    stream = transform(case.graphs(), ROTATED).head_input.rotation
    before = matrix(folded[name]) if stream is None else stream.apply(matrix(folded[name]))
    after = matrix(rotated[name])
    first = len(after) - case.config.num_kv_heads * size
    np.testing.assert_allclose(after[:first], before[:first], atol=1e-5)
    turn = Rotation.of_size(size)
    for start in range(first, len(after), size):
        head = slice(start, start + size)
        np.testing.assert_allclose(after[head], rotate_columns(turn, before[head]), atol=1e-5)


@pytest.mark.parametrize("case", ["shapes", "odd", "gemma2"], indirect=True)
def test_a_prefill_graph_makes_the_same_keys_and_values(case: Case, tmp_path: Path) -> None:
    decoder = case.graphs()[DECODER]
    prefill = prefill_of(decoder)
    names = [layer.name for layer in linears(prefill)]
    last = f".{case.config.num_layers - 1}."
    assert [name for name in names if last in name] == [f"prefill.layers{last}qkv_proj"]
    assert len(names) == len(linears(decoder)) - 5  # the last block's other four, and the head
    outputs = [value.name for value in prefill.graph.outputs]
    assert [contract.LOGITS, *outputs] == [value.name for value in decoder.graph.outputs]
    found, expected = (
        read_prompt(model, case.features(), case.config, tmp_path / f"{model.graph.name}.onnx")
        for model in (prefill, decoder)
    )
    for name in outputs:
        np.testing.assert_allclose(found[str(name)], expected[str(name)], rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", ["windowed"], indirect=True)
def test_a_prefill_graph_beside_a_decoder_with_windows_sees_all_and_answers(
    case: Case, tmp_path: Path
) -> None:
    decoder = transform(case.graphs(), FOLDED).graphs[DECODER]
    prefill = prefill_of(decoder)
    names = [layer.name.replace("prefill.", "decoder.", 1) for layer in linears(prefill)]
    assert names == [layer.name for layer in linears(decoder)]
    assert HEAD in [layer.name for layer in linears(prefill)]
    assert has_windows(decoder)
    assert not has_windows(prefill)
    found, expected, short = (
        read_prompt(model, case.features(), case.config, tmp_path / f"{name}.onnx")
        for name, model in (("a", prefill), ("b", whole_prompt(decoder)), ("c", decoder))
    )
    largest = np.abs(expected[contract.LOGITS]).max()
    assert np.abs(found[contract.LOGITS] - expected[contract.LOGITS]).max() < 1e-5 * largest
    assert np.abs(short[contract.LOGITS] - expected[contract.LOGITS]).max() > 1e-2 * largest


def test_all_transforms_together_keep_the_logits(case: Case, assert_same: AssertSame) -> None:
    transformed = transform(case.graphs(), ALL)
    assert_same(prepare(transformed, ALL, case.moments(transformed.graphs)).graphs)


def test_graphs_that_are_prepared_are_left_as_they_are(
    case: Case, exact: Array, tmp_path: Path
) -> None:
    graphs = case.graphs()
    transformed = transform(graphs, ALL)
    before = {name: matrix(layer) for name, layer in by_name(transformed.graphs).items()}
    prepare(transformed, ALL, case.moments(transformed.graphs))
    for name, layer in by_name(transformed.graphs).items():
        np.testing.assert_array_equal(matrix(layer), before[name])
    again = answers(graphs, case.config, case.pixels[:1], tmp_path / "again")
    np.testing.assert_array_equal(again, exact)
