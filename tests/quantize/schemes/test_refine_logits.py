"""A rounded head finds the candidates, and the best logits are exact again; so are answers."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from paligemma_edge import PaliGemma
from paligemma_edge.quantize.fidelity.questions import sample_questions
from paligemma_edge.quantize.graphs.linear import HEAD
from paligemma_edge.quantize.quantizer import QuantizeOptions, quantize
from paligemma_edge.quantize.recipes.recipe import Assignment, Recipe, Scheme
from paligemma_edge.quantize.variant.passes import prepare, round_graphs, transform
from paligemma_edge.quantize.variant.sensitivity import SchemeChoice
from tests.helpers.half_graphs import Array, answers
from tests.helpers.watched import AssertSame, Case

CLOSE = 1e-4  # of the largest logit
COUNT = 64
SCHEMES = {
    "coarse": Scheme(kind="blockwise", bits=4, block=256, pad=True, rounding="nearest"),
    "float": Scheme(kind="float"),
}
TRANSFORMS: Mapping[str, dict[str, Any]] = {
    "plain": {"fold": False},
    "folded": {},
    "rotated": {"rotate": True},
    "smoothed": {"smooth": 0.5},
}


def recipe(transforms: str, *, refine: int) -> Recipe:
    """Nothing is rounded but the head."""
    base = Recipe(
        about="a test",
        weights="int4",
        schemes=SCHEMES,
        layers=(Assignment(match=HEAD, scheme="coarse"),),
        refine=refine,
        name=f"cpu-{'refined' if refine else 'rough'}",
    )
    return dataclasses.replace(base, **TRANSFORMS[transforms])


def headed(case: Case, made_by: Recipe, scheme: str) -> dict[str, ir.Model]:
    transformed = transform(case.graphs(), made_by)
    transformed = prepare(
        transformed, made_by, case.moments(transformed.graphs) if made_by.smooth else {}
    )
    return round_graphs(transformed, made_by, {HEAD: SchemeChoice(HEAD, scheme, {scheme: 0.0})})


@pytest.mark.parametrize("transforms", list(TRANSFORMS))
def test_refining_a_float_head_changes_nothing(
    transforms: str, case: Case, assert_same: AssertSame
) -> None:
    graphs = headed(case, recipe(transforms, refine=COUNT), "float")
    kinds = [node.op_type for node in graphs["decoder"].graph]
    assert kinds.count("ScatterElements") == kinds.count("TopK") == 1
    assert_same(graphs)


@pytest.mark.parametrize("transforms", list(TRANSFORMS))
def test_the_best_logits_of_a_rounded_head_are_exact(
    transforms: str, case: Case, exact: Array, tmp_path: Path
) -> None:
    refined, rough = (
        answers(
            headed(case, recipe(transforms, refine=count), "coarse"),
            case.config,
            case.pixels[:1],
            tmp_path / str(count),
        )
        for count in (COUNT, 0)
    )
    close = CLOSE * np.abs(exact).max()
    for row, expected, without in zip(refined, exact, rough, strict=True):
        best = np.argsort(-expected)[:3]
        np.testing.assert_allclose(row[best], expected[best], rtol=0, atol=close)
        assert row.argmax() == best[0]
        assert np.abs(without[best] - expected[best]).max() > 10 * close
        candidates = np.argsort(-without)[:COUNT]
        np.testing.assert_allclose(row[candidates], expected[candidates], rtol=0, atol=close)
        others = np.delete(np.arange(len(row)), candidates)
        np.testing.assert_array_equal(row[others], without[others])


@pytest.fixture(scope="module")
def bundle(shapes_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = Path(shutil.copytree(shapes_bundle, tmp_path_factory.mktemp("head") / "copy.bundle"))
    prefill = Recipe(about="a test", weights="bfloat16", prefill=True, name="cpu-prefill")
    recipes = [recipe("folded", refine=COUNT), recipe("folded", refine=0), prefill]
    quantize(copy, recipes, QuantizeOptions(calibrate=False, report=False))
    return copy


@pytest.fixture(scope="module")
def lossless(bundle: Path) -> list[tuple[int, ...]]:
    return answers_of(bundle, "cpu-fp32")


def answers_of(bundle: Path, variant: str) -> list[tuple[int, ...]]:
    model = PaliGemma(bundle, variant=variant)
    assert ("prefill" in model._loaded.engine.sessions) == (variant == "cpu-prefill")
    requests = [(question.image, question.prompt) for question in sample_questions()[1::2]]
    return [found.token_ids for found in model.generate_batch(requests, max_new_tokens=24)]


def test_answers_of_a_refined_head_are_the_lossless_ones(
    bundle: Path, lossless: list[tuple[int, ...]]
) -> None:
    assert answers_of(bundle, "cpu-refined") == lossless
    assert answers_of(bundle, "cpu-rough") != lossless


def test_a_prompt_that_a_graph_of_its_own_reads_is_answered_alike(
    bundle: Path, lossless: list[tuple[int, ...]]
) -> None:
    assert answers_of(bundle, "cpu-prefill") == lossless
