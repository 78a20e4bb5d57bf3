"""Smoothing keeps the function, and a channel that was planted is as if it had never been."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import pytest

from paligemma_edge.quantize.graphs.derived_weights import Float
from paligemma_edge.quantize.graphs.linear import Linear, untie_head
from paligemma_edge.quantize.rounding.statistics import Moments
from paligemma_edge.quantize.transforms.changes import DividedOutputs, ScaledInputs
from paligemma_edge.quantize.transforms.fold import float_of, put_float
from paligemma_edge.quantize.transforms.smooth import smooth
from paligemma_edge.runtime import contract
from tests.helpers.watched import AssertSame, Case, assert_same_moments, by_name, matrix

GRAPHS = (contract.VISION_ENCODER, contract.DECODER)
PRODUCTS = (".down_proj", ".out_proj")  # what is before them is linear
NORMS = (".qkv_proj", ".fc1", ".gate_proj", ".up_proj", "lm_head")
FACTOR = np.float32(60)
CHANNEL = 5


def smooth_all(
    graphs: Mapping[str, ir.Model], moments: Mapping[str, Moments], *, norms: bool
) -> Mapping[str, Moments]:
    for name in GRAPHS:
        moments = smooth(graphs[name], moments, 0.5, norms=norms)
    return moments


@pytest.mark.parametrize("known", [True, False], ids=["calibrated", "weights alone"])
def test_smoothing_keeps_the_logits(known: bool, case: Case, assert_same: AssertSame) -> None:
    graphs = case.graphs()
    untie_head(graphs[contract.DECODER])
    before = {name: matrix(layer) for name, layer in by_name(graphs).items()}
    smooth_all(graphs, case.moments(graphs) if known else {}, norms=known)
    changed = {n for n, x in by_name(graphs).items() if not np.array_equal(matrix(x), before[n])}
    assert {name for name in before if name.endswith(PRODUCTS)} <= changed
    assert {"decoder.lm_head", "vision.layers.0.fc1"} <= changed or not known
    assert_same(graphs)


def test_inputs_become_as_uneven_as_the_columns_that_read_them(case: Case) -> None:
    """What equation 4 of the paper is for, with a strength of one half."""
    graphs = case.graphs()
    untie_head(graphs[contract.DECODER])
    before = case.moments(graphs)
    predicted = smooth_all(graphs, before, norms=True)
    after = case.moments(graphs)
    for name, layer in by_name(graphs).items():
        assert_same_moments(predicted[name], after[name], name)
        if name.endswith(PRODUCTS + NORMS):
            assert unevenness(after[name].largest) < unevenness(before[name].largest)
        if name.endswith(PRODUCTS):
            ratios = after[name].largest / np.abs(matrix(layer)).max(axis=0)
            np.testing.assert_allclose(ratios, np.median(ratios), rtol=5e-3, err_msg=name)


@pytest.mark.parametrize("known", [True, False], ids=["calibrated", "weights alone"])
def test_a_planted_channel_is_as_if_it_had_never_been(known: bool, case: Case) -> None:
    plain, planted = case.graphs(), case.graphs()
    names = plant(planted)
    before = case.moments(plain), case.moments(planted)
    for graphs, moments in zip((plain, planted), before, strict=True):
        smooth_all(graphs, moments if known else {}, norms=False)
    after = case.moments(plain), case.moments(planted)
    assert len(names) > case.config.num_layers
    for name in names:
        ratios = before[1][name].largest / before[0][name].largest
        assert ratios[CHANNEL] == pytest.approx(FACTOR, rel=1e-2)
        assert np.delete(ratios, CHANNEL) == pytest.approx(1, rel=1e-2)
        ratios = after[1][name].largest / after[0][name].largest
        np.testing.assert_allclose(ratios, np.median(ratios), rtol=1e-2, err_msg=name)


def plant(graphs: Mapping[str, ir.Model]) -> list[str]:
    """Make one channel huge before each layer that reads a product, which reads it small."""
    layers = by_name(graphs)
    writers = {".down_proj": ".up_proj", ".out_proj": ".qkv_proj"}
    found = [(name, end) for name in layers for end in writers if name.endswith(end)]
    for name, end in found:
        writer, reader = layers[name.replace(end, writers[end])], layers[name]
        row = CHANNEL if end == ".down_proj" else writer.out_features - reader.in_features + CHANNEL
        _enlarge_row(writer, row)
        _shrink_column(reader, CHANNEL)
    return [name for name, _ in found]


def _enlarge_row(layer: Linear, row: int) -> None:
    divisors = np.ones(layer.out_features, np.float32)
    divisors[row] /= FACTOR
    layer.change(DividedOutputs(divisors))
    if layer.bias is not None:
        bias = float_of(layer.bias).copy()
        bias[row] *= FACTOR
        put_float(layer.bias, bias)


def _shrink_column(layer: Linear, column: int) -> None:
    scales = np.ones(layer.in_features, np.float32)
    scales[column] /= FACTOR
    layer.change(ScaledInputs(scales))


def unevenness(largest: Float) -> float:
    return float(np.std(np.log(largest[largest > 0])))
