"""Outliers that do not change the function do not change what a recipe keeps of it.

Every figure is held against that of the same recipe on the plain sample model. The divergence
is the sharp one: a transform that is broken multiplies it long before an answer changes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from paligemma_edge.export.exporter import export
from paligemma_edge.quantize.fidelity.answers import EvalRequest
from paligemma_edge.quantize.fidelity.figures import divergence
from paligemma_edge.quantize.fidelity.measure import DEFAULT_MAX_NEW_TOKENS
from paligemma_edge.quantize.fidelity.questions import sample_questions
from paligemma_edge.quantize.quantizer import QuantizeOptions, quantize
from paligemma_edge.quantize.recipes.recipe import Recipe, load_recipe
from paligemma_edge.runtime.loading.loaded_model import load_model
from tests.helpers.half_graphs import Array
from tests.helpers.hostile import Planted, plant
from tests.helpers.shared import build_once

SHIPPED = ("cpu-int8", "cpu-int4", "cpu-fast")
POINT = 0.01  # of tokens
AS_NEAR = 1.5  # times the divergence on the plain model
BROKEN = 4.0  # times that divergence, at least
LOSSLESS = 1e-3  # of the largest logit: sums of float32 in another measure

UNTRANSFORMED = """
about = "a test: what 8-bit integers are without a transform"
weights = "int8"
fold = false
schemes.int8 = { kind = "integer", inputs = 8 }
layers = [{ match = "vision.*", scheme = "int8" }, { match = "decoder.*", scheme = "int8" }]
"""
# Weights of 8 bits are what suffers here: inputs of 16 bits are fine enough.
TRANSFORMS = """
about = "a test: one transform or none"
weights = "int8"
fold = {fold}
smooth = {smooth}
schemes.int8 = {{ kind = "integer", inputs = 16, rounding = "nearest" }}
layers = [{{ match = "vision.*", scheme = "int8" }}, {{ match = "decoder.*", scheme = "int8" }}]
"""

QUESTIONS = tuple(sample_questions())
ANSWER = 1 / len(QUESTIONS)  # of two tokens that are as likely either may be chosen
FEW = slice(None, None, 4)  # of the questions, where a figure is off by much


@dataclass(frozen=True)
class Kept:
    """What a variant keeps of the sample model, over some questions."""

    same: float  # share of answers
    forced: float  # share of tokens
    divergence: float  # in the mean, in nats
    logit_error: float  # the largest, of the largest logit


Answers = list[
    tuple[tuple[int, ...], Array]
]  # tokens, and the logits [tokens, image_id] before each


@pytest.fixture(scope="module")
def known(shapes_bundle: Path) -> Answers:
    """What the plain model answers."""
    model, found = load_model(shapes_bundle), []
    for question in QUESTIONS:
        steps = EvalRequest.encode(model, question, DEFAULT_MAX_NEW_TOKENS).answer()
        tokens, rows = zip(*((token, row.copy()) for token, row in steps), strict=True)
        found.append((tokens, np.stack(rows)))
    return found


def measure(bundle: Path, variant: str, known: Answers, some: slice = slice(None)) -> Kept:
    """After the plain model's tokens; where all of those are chosen the answer is the same."""
    model, same, forced, errors, far = load_model(bundle, variant=variant), [], [], [], []
    for question, (tokens, expected) in zip(QUESTIONS[some], known[some], strict=True):
        request = EvalRequest.encode(model, question, DEFAULT_MAX_NEW_TOKENS)
        chosen = []
        for row, wanted in zip(request.forced(tokens), expected, strict=True):
            chosen.append(int(row.argmax()))
            far.append(divergence(wanted, row))
            errors.append(float(np.abs(row - wanted).max() / np.abs(wanted).max()))
        same.append(tuple(chosen) == tokens)
        forced += np.equal(chosen, tokens).tolist()
    shares = [float(np.mean(values)) for values in (same, forced)]
    return Kept(shares[0], shares[1], float(np.mean(far)), max(errors))


def hostile_bundle(checkpoint: Path, folder: Path, planted: Planted) -> Path:
    source = plant(checkpoint, folder / "checkpoint", planted)
    export(source, folder / "hostile.bundle")
    return folder / "hostile.bundle"


def user_recipe(folder: Path, name: str, text: str) -> Recipe:
    path = folder / f"{name}.toml"
    path.write_text(text, encoding="utf-8")
    return load_recipe(path)


@pytest.fixture(scope="module")
def bundles(
    shapes_bundle: Path, shapes_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, Path]:
    """The plain model and the hostile one, by the shipped recipes and one without transforms."""

    def build(folder: Path) -> None:
        shutil.copytree(shapes_bundle, folder / "plain.bundle")
        hostile_bundle(shapes_checkpoint, folder, Planted())
        recipes = [load_recipe(name) for name in SHIPPED]
        recipes.append(user_recipe(folder, "cpu-untransformed", UNTRANSFORMED))
        for name in ("plain", "hostile"):
            quantize(folder / f"{name}.bundle", recipes, QuantizeOptions(report=False))

    folder = build_once(tmp_path_factory, "hostile", build)
    return {name: folder / f"{name}.bundle" for name in ("plain", "hostile")}


@pytest.fixture(scope="module")
def kept(bundles: Mapping[str, Path], known: Answers) -> Callable[[str, str], Kept]:
    """What a variant of one of the two keeps, measured once."""
    found: dict[tuple[str, str], Kept] = {}

    def kept(model: str, variant: str) -> Kept:
        if (model, variant) not in found:
            found[model, variant] = measure(bundles[model], variant, known)
        return found[model, variant]

    return kept


def test_planting_does_not_change_the_function(kept: Callable[[str, str], Kept]) -> None:
    lossless = kept("hostile", "cpu-fp32")
    assert (lossless.same, lossless.forced) == (1, 1)
    assert lossless.logit_error < LOSSLESS


@pytest.mark.parametrize("recipe", SHIPPED)
def test_shipped_recipes_keep_as_much_of_the_hostile_model(
    recipe: str, kept: Callable[[str, str], Kept]
) -> None:
    plain, hostile = kept("plain", recipe), kept("hostile", recipe)
    assert hostile.same >= plain.same - 1.5 * ANSWER
    assert hostile.forced >= plain.forced - POINT
    assert hostile.divergence <= AS_NEAR * plain.divergence


def test_without_a_transform_8_bits_fail(kept: Callable[[str, str], Kept]) -> None:
    plain, hostile = kept("plain", "cpu-untransformed"), kept("hostile", "cpu-untransformed")
    for fine in (plain, *(kept("hostile", recipe) for recipe in SHIPPED)):
        assert hostile.same < fine.same - 10 * ANSWER
        assert hostile.forced < fine.forced - 5 * POINT
        assert hostile.divergence > BROKEN * fine.divergence


@pytest.mark.parametrize(
    ("planted", "without", "transformed"),
    [
        pytest.param(Planted(products=False), (False, 0.0), (True, 0.0), id="norms are folded"),
        pytest.param(Planted(norms=False), (True, 0.0), (True, 0.5), id="products are smoothed"),
    ],
)
def test_each_transform_helps_with_its_own_channels(
    planted: Planted,
    without: tuple[bool, float],
    transformed: tuple[bool, float],
    known: Answers,
    shapes_bundle: Path,
    shapes_checkpoint: Path,
    tmp_path: Path,
) -> None:
    hostile = hostile_bundle(shapes_checkpoint, tmp_path, planted)
    plain = Path(shutil.copytree(shapes_bundle, tmp_path / "plain.bundle"))
    without_it, with_it = (
        user_recipe(tmp_path, name, TRANSFORMS.format(fold=str(fold).lower(), smooth=strength))
        for name, (fold, strength) in (("cpu-without", without), ("cpu-with", transformed))
    )
    options = QuantizeOptions(calibrate=False, report=False)
    quantize(hostile, [without_it, with_it], options)
    quantize(plain, [with_it], options)
    bound = AS_NEAR * measure(plain, "cpu-with", known, FEW).divergence
    assert measure(hostile, "cpu-with", known, FEW).divergence <= bound
    assert measure(hostile, "cpu-without", known, FEW).divergence > BROKEN * bound
