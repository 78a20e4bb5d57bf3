"""Each layer has a branch, where its product ends, whatever the product is computed with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from paligemma_edge.quantize.graphs.graph_file import write_graph
from paligemma_edge.quantize.graphs.linear import EMBEDDING, linears
from paligemma_edge.quantize.recipes.recipe import Assignment, Recipe, Scheme
from paligemma_edge.quantize.schemes.cuda_check import missing_kernels
from paligemma_edge.quantize.schemes.half import to_half
from paligemma_edge.quantize.schemes.lora_branches import add_branches, layer_of
from paligemma_edge.quantize.schemes.products import Product, products
from paligemma_edge.quantize.variant.build import scheme_choices
from paligemma_edge.quantize.variant.passes import (
    TransformedGraphs,
    prepare,
    round_graphs,
    transform,
)
from paligemma_edge.runtime import contract
from tests.helpers.half_graphs import Array, emulate, open_graph, run
from tests.helpers.watched import TEXT, Case, decoder_feeds, watch

FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
SCHEMES = {
    "float": Scheme(kind="float"),
    "int4": Scheme(kind="blockwise", bits=4, block=32, pad=True, rounding="nearest"),
    "int8": Scheme(kind="blockwise", bits=8, block=16, pad=True, rounding="nearest"),
    "fast": Scheme(kind="integer", inputs=8, rounding="nearest"),
    "wide": Scheme(kind="integer", inputs=16, rounding="nearest"),
}
READERS = (contract.DECODER, contract.PREFILL)
RANK = 3


def recipe_of(scheme: str) -> Recipe:
    return Recipe(
        about="a test",
        weights="int8",
        rotate=True,
        refine=8,
        prefill=True,
        schemes={scheme: SCHEMES[scheme]},
        layers=(Assignment(match="*", scheme=scheme),),
        name="cpu-test",
    )


def transformed(case: Case, scheme: str) -> TransformedGraphs:
    recipe = recipe_of(scheme)
    return prepare(transform(case.graphs(), recipe), recipe, {})


def rounded(case: Case, scheme: str) -> dict[str, ir.Model]:
    found, recipe = transformed(case, scheme), recipe_of(scheme)
    return round_graphs(found, recipe, scheme_choices(found, recipe, measure=False))


def branches(model: ir.Model, rank: int = RANK) -> dict[str, Array]:
    """Random inputs for all that a graph takes, its shifts included."""
    rng, found = np.random.default_rng(0), {}
    for value in model.graph.inputs:
        if contract.LORA in str(value.name) and value.shape is not None:
            sizes = [size if isinstance(size, int) else rank for size in value.shape]
            found[str(value.name)] = rng.normal(0, 0.3, size=sizes).astype(np.float32)
    return found


def feeds(case: Case, graph: str) -> dict[str, Array]:
    if graph == contract.VISION_ENCODER:
        return {contract.PIXEL_VALUES: case.pixels}
    if graph == contract.PROJECTOR:
        wide = next(p.in_features for p in products(case.graphs()[graph]))
        shape = (1, case.config.image_tokens, wide)
        hidden = np.random.default_rng(3).normal(size=shape).astype(np.float32)
        return {contract.LAST_HIDDEN_STATE: hidden}
    length = case.config.image_tokens + len(TEXT)
    return decoder_feeds(case.features(), TEXT, length, case.config)


def check_sums(
    found: list[Product], names: Mapping[str, tuple[str, str, str]], seen: Mapping[str, Array]
) -> None:
    """`names` are what a layer reads, what its product gives, and the sum."""
    for product in found:
        x, y, total = (seen[name].astype(np.float64) for name in names[product.layer])
        a, b, shift = (seen.get(k) for k in contract.adapter_inputs(layer_of(product)))
        assert a is not None
        assert b is not None
        wanted = y + (x @ a + (0 if shift is None else shift)) @ b
        assert np.abs(wanted - y).max() > 0.01 * np.abs(y).max(), product.layer
        atol = 1e-5 * np.abs(wanted).max()
        np.testing.assert_allclose(total, wanted, rtol=0, atol=atol, err_msg=product.layer)


def named(found: list[Product], shifted: set[str]) -> dict[str, tuple[str, str, str]]:
    """The names of the three values, before branches are added."""
    names = {}
    for product in found:
        last = 3 if layer_of(product) in shifted else 2
        total = f"{product.layer}.lora.{last}.0"
        names[product.layer] = (str(product.x.name), str(product.y.name), total)
    return names


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_branch_is_added_to_the_product_of_what_the_layer_reads(
    scheme: str, case: Case, tmp_path: Path
) -> None:
    for graph, model in rounded(case, scheme).items():
        found = products(model)
        shifted = {layer_of(p) for p in found if p.layer.endswith((".qkv_proj", ".fc2"))}
        names = named(found, shifted)
        add_branches(model, FLOAT, shifted)
        given = branches(model)
        watched = {name for three in names.values() for name in three} - set(feeds(case, graph))
        session = watch(model, watched, tmp_path / f"{graph}.onnx")
        seen = run(session, {**feeds(case, graph), **given})
        check_sums(found, names, {**seen, **given, **feeds(case, graph)})
        onnx.checker.check_model(tmp_path / f"{graph}.onnx")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_product_begins_and_ends_where_the_layer_did(scheme: str, case: Case) -> None:
    before = transformed(case, scheme).graphs
    for graph, model in rounded(case, scheme).items():
        layers = {x.name: x for x in linears(before[graph])} if graph in before else {}
        for product in products(model) if layers else []:
            layer = layers[product.layer]
            assert product.x.name == layer.input.name, product.layer
            assert product.y.name == layer.node.outputs[0].name, product.layer


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_layer_but_the_head_has_a_branch(scheme: str, case: Case) -> None:
    exact, graphs = case.graphs(), rounded(case, scheme)
    for graph, model in exact.items():
        layers = {x.name: (x.in_features, x.out_features) for x in linears(model)}
        layers.pop(EMBEDDING, None)
        assert {p.layer: (p.in_features, p.out_features) for p in products(graphs[graph])} == layers
    decoder, prefill = (set(map(layer_of, products(graphs[name]))) for name in READERS)
    last = f".{case.config.num_layers - 1}."
    assert prefill <= decoder
    assert all(last in name for name in decoder - prefill)


def test_the_inputs_that_a_graph_declares(case: Case) -> None:
    model = rounded(case, "fast")[contract.PREFILL]
    before = {value.name for value in model.graph.inputs}
    initializers = dict(model.graph.initializers)
    name = "decoder.layers.0.qkv_proj"
    add_branches(model, FLOAT, {name})
    added = {str(v.name): v for v in model.graph.inputs if v.name not in before}
    outside = linears(case.graphs()[contract.DECODER])[0].out_features
    rank = f"{name}.rank"
    shapes = [(case.config.hidden_size, rank), (rank, outside), (rank,)]
    for found, shape in zip(contract.adapter_inputs(name), shapes, strict=True):
        declared = added[found].shape
        assert declared is not None
        assert tuple(str(n) if not isinstance(n, int) else n for n in declared) == shape
    assert {value.dtype for value in added.values()} == {FLOAT}
    assert len(added) == 2 * len(products(model)) + 1
    assert dict(model.graph.initializers) == initializers


@pytest.mark.parametrize("half", [HALF, ir.DataType.BFLOAT16])
def test_branches_of_half_precision_run_on_cuda(half: ir.DataType, case: Case) -> None:
    for graph, model in case.graphs().items():
        kept = [p.layer for p in products(model)][-1:]
        to_half(model, half, keep_float=kept)
        casts = count(model, "Cast")
        add_branches(model, half, {layer_of(p) for p in products(model)})
        assert missing_kernels(graph, model, half) == []
        assert {v.dtype for v in model.graph.inputs if contract.LORA in str(v.name)} == {half}
        assert count(model, "Cast") == casts + 3  # of the layer that is kept in float32
        assert {p.layer for p in products(model) if p.dtype == FLOAT} == set(kept)


def count(model: ir.Model, kind: str) -> int:
    return sum(node.op_type == kind for node in model.graph)


@pytest.mark.parametrize("case", ["shapes"], indirect=True)
@pytest.mark.parametrize(("scheme", "close"), [("float", 0.02), ("int4", 0.1)])
@pytest.mark.parametrize("kept", [False, True])
def test_a_branch_in_half_precision_adds_the_same(
    kept: bool, scheme: str, close: float, case: Case, tmp_path: Path
) -> None:
    """Rounding aside, which is small beside what the branches do."""
    results, plain = {}, {}
    for dtype in (FLOAT, HALF):
        model = rounded(case, scheme)[contract.VISION_ENCODER]
        found = products(model)
        if dtype == HALF:
            to_half(model, HALF, keep_float=[found[3].layer] if kept else [])
        add_branches(model, dtype, {p.layer for p in found if p.layer.endswith("fc1")})
        if dtype == HALF:
            emulate(model, HALF)
        given = {name: array / 3 for name, array in branches(model).items()}
        session = open_graph(model, tmp_path / f"{dtype.name}.onnx")
        fed = {contract.PIXEL_VALUES: case.pixels}
        results[dtype] = run(session, {**fed, **given})[contract.LAST_HIDDEN_STATE]
        nothing = {name: array * 0 for name, array in given.items()}
        plain[dtype] = run(session, {**fed, **nothing})[contract.LAST_HIDDEN_STATE]
    effect = np.abs(results[FLOAT] - plain[FLOAT]).max()
    assert effect > 0.2 * np.abs(results[FLOAT]).max()
    assert np.abs(results[HALF] - results[FLOAT]).max() < close * effect


def test_a_graph_that_was_written_keeps_its_weights_where_they_lie(
    case: Case, tmp_path: Path
) -> None:
    write_graph(rounded(case, "int4")[contract.DECODER], tmp_path / "decoder.onnx")
    model = ir.load(tmp_path / "decoder.onnx")
    add_branches(model, FLOAT, ())
    proto = ir.to_proto(model)
    stored = [t for t in proto.graph.initializer if t.external_data]
    places = {entry.value for t in stored for entry in t.external_data if entry.key == "location"}
    assert places == {"decoder.onnx.data"}
    before = onnx.load(tmp_path / "decoder.onnx", load_external_data=False)
    assert list(proto.graph.initializer) == list(before.graph.initializer)
    assert len(proto.SerializeToString()) < 200_000
