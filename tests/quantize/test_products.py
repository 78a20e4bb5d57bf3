"""Products of integers, token by token; and the best logits, exact again after a rounded head."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from paligemma_edge.quantize.apply import cure, prepare, round_graphs
from paligemma_edge.quantize.integer import to_integer
from paligemma_edge.quantize.linear import HEAD, linears
from paligemma_edge.quantize.quantizer import Options, quantize
from paligemma_edge.quantize.questions import sample_questions
from paligemma_edge.quantize.recipe import Assignment, Recipe, Scheme
from paligemma_edge.quantize.rounding import Grid, Rounded, round_rows
from paligemma_edge.quantize.sensitivity import Choice
from paligemma_edge.runtime import PaliGemma
from tests.quantize.half_graphs import Array, answers
from tests.quantize.watched import AssertSame, Case

WIDTH, OUT = 72, 40
CLOSE = 1e-4  # of the largest logit
COARSE = Scheme(kind="blockwise", bits=4, block=256, pad=True, rounding="nearest")
BASE = Recipe(about="a test", weights="int4", schemes={"coarse": COARSE, "float": Scheme(kind="float")})
QUESTIONS = tuple(sample_questions())

Product = Callable[[Array], Array]


def nearest(rows: Array) -> Rounded:
    return round_rows(rows, Grid(8, None), "nearest", None)


@pytest.fixture(scope="module")
def weight() -> Array:
    rng = np.random.default_rng(3)
    return (rng.normal(size=(OUT, WIDTH)) * rng.uniform(0.1, 4, (OUT, 1))).astype(np.float32)


@pytest.fixture(params=[8, 16])
def inputs(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def integer_product(weight: Array, inputs: int) -> Product:
    """x [batch, tokens, in] → [batch, tokens, out], by the nodes of a recipe."""
    x = ir.Value(
        name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["batch", "tokens", WIDTH])
    )
    table = ir.Value(
        name="layer.weight",
        type=ir.TensorType(ir.DataType.FLOAT),
        shape=ir.Shape([WIDTH, OUT]),
        const_value=ir.tensor(np.ascontiguousarray(weight.T), name="layer.weight"),
    )
    product = ir.node("MatMul", [x, table])
    y = ir.node("Identity", [product.outputs[0]])
    y.outputs[0].name = "y"
    y.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    y.outputs[0].shape = ir.Shape(["batch", "tokens", OUT])
    graph = ir.Graph(
        [x],
        y.outputs,
        nodes=[product, y],
        initializers=[table],
        opset_imports={"": 23, "com.microsoft": 1},
        name="product",
    )
    model = ir.Model(graph, ir_version=10)
    to_integer(model, linears(model)[0], nearest, inputs=inputs)
    session = ort.InferenceSession(
        ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return lambda rows: np.asarray(session.run(["y"], {"x": rows})[0])


def rows_of(count: int, *, seed: int) -> Array:
    """Tokens of very different sizes, one of them nothing but zeros."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(count, WIDTH)) * 10 ** rng.uniform(-3, 3, (count, 1))
    rows[count // 2] = 0
    return rows.astype(np.float32)


def test_a_token_does_not_depend_on_what_stands_beside_it(weight: Array, inputs: int) -> None:
    product, rows = integer_product(weight, inputs), rows_of(9, seed=0)
    alone = np.stack([product(row[None, None])[0, 0] for row in rows])
    others = rows_of(9, seed=1) * 1e4
    for together in (rows[None], rows[:, None], rows.reshape(3, 3, WIDTH)):
        assert np.array_equal(product(together).reshape(alone.shape), alone)
    beside = np.stack([rows, others], axis=1)
    assert np.array_equal(product(beside)[:, 0], alone)
    assert np.array_equal(product(np.stack([others, rows]))[1], alone)
    assert np.array_equal(product(rows[None, ::-1])[0, ::-1], alone)
    assert not alone[len(rows) // 2].any()


def test_inputs_of_16_bits_are_far_nearer_than_of_8(weight: Array) -> None:
    rows = rows_of(200, seed=2)
    exact = rows.astype(np.float64) @ nearest(weight).values().T.astype(np.float64)
    errors = {}
    for bits in (8, 16):
        error = np.abs(integer_product(weight, bits)(rows[None])[0] - exact)
        # Each token beside its own size: half a step of its largest value, for each input.
        bound = np.abs(rows).max(axis=1) * np.abs(nearest(weight).values()).sum(axis=1).max()
        sizes = np.maximum(bound, 1e-30)[:, None]
        errors[bits] = float((error / sizes).max())
    assert 1e-4 < errors[8] < 0.5 / 127
    assert errors[16] < errors[8] / 150


def headed(case: Case, recipe: Recipe, scheme: str) -> dict[str, ir.Model]:
    """The graphs with nothing rounded but the head, and the best of its logits refined."""
    cured = prepare(cure(case.graphs(), recipe), recipe, {})
    return round_graphs(cured, recipe, {HEAD: Choice(HEAD, scheme, {scheme: 0.0})})


CURES = {
    "plain": {"fold": False},
    "folded": {"fold": True},
    "rotated": {"fold": True, "rotate": True},
}


def with_head(cures: str, *, refine: int) -> Recipe:
    layers = (Assignment(match=HEAD, scheme="coarse"),)
    name = f"cpu-{cures}{refine}"
    return dataclasses.replace(BASE, layers=layers, name=name, refine=refine, **CURES[cures])


@pytest.mark.parametrize("cures", list(CURES))
def test_refining_a_float_head_changes_nothing(
    cures: str, case: Case, assert_same: AssertSame
) -> None:
    graphs = headed(case, with_head(cures, refine=64), "float")
    kinds = [node.op_type for node in graphs["decoder"].graph]
    assert kinds.count("ScatterElements") == kinds.count("TopK") == 1
    assert_same(graphs)


@pytest.mark.parametrize("cures", list(CURES))
def test_the_best_logits_of_a_rounded_head_are_exact(
    cures: str, case: Case, exact: Array, tmp_path: Path
) -> None:
    refined, rough = (
        answers(
            headed(case, with_head(cures, refine=count), "coarse"),
            case.facts,
            case.pixels[:1],
            tmp_path / str(count),
        )
        for count in (64, 0)
    )
    scale = np.abs(exact).max()
    for row, expected, without in zip(refined, exact, rough, strict=True):
        best = np.argsort(-expected)[:3]
        np.testing.assert_allclose(row[best], expected[best], rtol=0, atol=CLOSE * scale)
        assert row.argmax() == best[0]
        assert np.abs(without[best] - expected[best]).max() > 10 * CLOSE * scale
        same = np.abs(row - expected) < CLOSE * scale
        assert 64 <= same.sum() < len(row) // 2
        assert np.array_equal(row[~same], without[~same])


@pytest.fixture(scope="module")
def headed_bundle(shapes_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import shutil

    copy = Path(shutil.copytree(shapes_bundle, tmp_path_factory.mktemp("head") / "copy.bundle"))
    prefill = Recipe(about="a test", weights="bfloat16", prefill=True, name="cpu-prefill")
    recipes = [with_head("rotated", refine=64), with_head("rotated", refine=0), prefill]
    quantize(copy, recipes, Options(calibrate=False, report=False))
    return copy


def said(bundle: Path, variant: str) -> list[tuple[int, ...]]:
    model = PaliGemma(bundle, variant=variant)
    assert (model.engine.prefiller is not None) == (variant == "cpu-prefill")
    requests = [(question.image, question.prompt) for question in QUESTIONS]
    return [g.token_ids for g in model.generate_batch(requests, max_new_tokens=24)]


def test_answers_of_a_refined_head_are_the_lossless_ones(headed_bundle: Path) -> None:
    expected = said(headed_bundle, "cpu-fp32")
    assert said(headed_bundle, "cpu-rotated64") == expected
    assert said(headed_bundle, "cpu-rotated0") != expected


def test_a_prompt_that_a_graph_of_its_own_reads_is_answered_alike(headed_bundle: Path) -> None:
    assert said(headed_bundle, "cpu-prefill") == said(headed_bundle, "cpu-fp32")
