"""`--min-agreement`: the smallest variant that keeps enough of the answers, or none at all."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir
import pytest

from paligemma_edge.quantize.calibration.samples import Calibration, without_answers
from paligemma_edge.quantize.fidelity.questions import sample_questions
from paligemma_edge.quantize.graphs.linear import linears
from paligemma_edge.quantize.quantizer import QuantizeOptions, quantize
from paligemma_edge.quantize.recipes.recipe import Assignment, Recipe, Scheme
from paligemma_edge.quantize.variant import search
from paligemma_edge.quantize.variant.passes import TransformedGraphs
from paligemma_edge.quantize.variant.prepare import transform_and_calibrate
from paligemma_edge.quantize.variant.search import smallest_that_keeps
from paligemma_edge.quantize.variant.sensitivity import SchemeChoice, SchemeChoices, choose_schemes
from paligemma_edge.runtime.bundle.bundle import Bundle, sha256
from paligemma_edge.runtime.bundle.fidelity import Fidelity
from paligemma_edge.runtime.errors import OptionError
from paligemma_edge.runtime.text.tokenizer import PromptEncoder
from tests.helpers.half_graphs import load

# What a recipe should be is not tested here: this one is rough, so that answers change.
ROUGH = Recipe(
    about="a test",
    weights="int4",
    schemes={
        "int4": Scheme(kind="blockwise", bits=4, block=256, pad=True, rounding="nearest"),
        "int8": Scheme(kind="blockwise", bits=8, block=32, rounding="search"),
    },
    layers=(Assignment(match="decoder.*", scheme="int4", safer=("int8",)),),
    refine=32,  # or all would depend on the head
    name="cpu-rough",
)
SAFEST = dataclasses.replace(
    ROUGH, layers=(Assignment(match="decoder.*", scheme="int8"),), name="cpu-safest"
)
HOPELESS = dataclasses.replace(ROUGH, layers=(Assignment(match="decoder.*", scheme="int4"),))
IMAGES = ("02", "03")  # of which the rough variant changes some answers
QUESTIONS = tuple(q for q in sample_questions() if q.image.stem in IMAGES)
OPTIONS = QuantizeOptions(questions=QUESTIONS)


@pytest.fixture(scope="module")
def transformed_choices(
    shapes_bundle: Path,
) -> tuple[Bundle, TransformedGraphs, SchemeChoices]:
    bundle, calibration = Bundle.open(shapes_bundle), calibrated(shapes_bundle)
    config = bundle.manifest.model
    transformed = transform_and_calibrate(
        load(shapes_bundle), config, ROUGH, calibration, lambda *_: None
    )
    return bundle, transformed, choose_schemes(transformed.layers(), ROUGH, transformed.moments)


def calibrated(path: Path) -> Calibration:
    manifest = Bundle.open(path).manifest
    encoder = PromptEncoder(path / manifest.tokenizer.file, manifest.tokenizer)
    return without_answers(manifest, encoder, QUESTIONS[:2])


def share_of_8_bits(graphs: Mapping[str, ir.Model]) -> float:
    nodes = [node for node in graphs["decoder"].graph if node.op_type == "MatMulNBits"]
    return sum(node.attributes["bits"].as_int() == 8 for node in nodes) / len(nodes)


@pytest.mark.parametrize("share", [0.01, 0.4, 0.41, 0.99, 1.0])
def test_the_fewest_layers_take_a_safer_scheme_and_those_that_gain_most(
    share: float,
    transformed_choices: tuple[Bundle, TransformedGraphs, SchemeChoices],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Here a variant keeps as many answers as layers have 8 bits."""
    bundle, transformed, choices = transformed_choices
    shares: list[float] = []

    def agreement(_: Bundle, recipe: Recipe, graphs: dict[str, ir.Model], __: object) -> float:
        shares.append(share_of_8_bits(graphs))
        return shares[-1]

    monkeypatch.setattr(search, "_agreement", agreement)
    found = smallest_that_keeps(
        bundle,
        ROUGH,
        transformed,
        choices,
        Calibration((), ()),
        min_agreement=share,
        progress=lambda *_: None,
    )
    moved = {name for name, choice in found.items() if choice.scheme == "int8"}
    assert (len(moved) - 1) / len(found) < share <= len(moved) / len(found)
    assert set(found) == {layer.name for layer in linears(transformed.graphs["decoder"])}
    assert len(shares) <= 1 + len(found).bit_length()
    gains = {name: gain(choice, transformed) for name, choice in found.items()}
    kept = [gains[name] for name in found if name not in moved]
    assert min(gains[name] for name in moved) >= max(kept, default=0)


def gain(choice: SchemeChoice, transformed: TransformedGraphs) -> float:
    """How much of the squared error goes, for a weight."""
    layer = transformed.layers()[choice.layer]
    errors = choice.errors
    return (errors["int4"] ** 2 - errors["int8"] ** 2) / (layer.in_features * layer.out_features)


@pytest.fixture(scope="module")
def reports(
    shapes_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Fidelity, Fidelity]:
    import shutil

    copy = Path(shutil.copytree(shapes_bundle, tmp_path_factory.mktemp("search") / "copy.bundle"))
    plain, safest = quantize(copy, [ROUGH, SAFEST], OPTIONS)
    return copy, plain, safest


def test_a_share_that_the_recipe_does_not_reach_is_reached(
    reports: tuple[Path, Fidelity, Fidelity],
) -> None:
    copy, plain, safest = reports
    wanted = plain.same_answers + 1 / len(QUESTIONS) - 1e-9
    assert plain.same_answers < wanted <= safest.same_answers
    recipe = dataclasses.replace(ROUGH, name="cpu-searched")
    (found,) = quantize(copy, [recipe], dataclasses.replace(OPTIONS, min_agreement=wanted))
    assert found.same_answers >= wanted
    assert plain.disk_bytes < found.disk_bytes < safest.disk_bytes
    schemes = {line.scheme for line in found.layers}
    assert schemes == {"int4", "int8"}
    assert any("fell back to int8" in note for note in found.notes)


def test_a_share_that_cannot_be_reached_leaves_the_bundle_as_it_was(
    reports: tuple[Path, Fidelity, Fidelity],
) -> None:
    copy, plain, _ = reports
    assert plain.same_answers < 1
    before = contents(copy)
    every = dataclasses.replace(OPTIONS, min_agreement=1.0, overwrite=True)
    for name in (ROUGH.name, "cpu-new"):  # one that is there, and one that is not
        recipe = dataclasses.replace(HOPELESS, name=name)
        with pytest.raises(OptionError, match=rf"{name} keeps {plain.same_answers:.1%}.*100.0%"):
            quantize(copy, [recipe], every)
        assert contents(copy) == before


def contents(bundle: Path) -> dict[str, str | None]:
    """The digest of every file, and the name of every folder."""
    return {
        str(path.relative_to(bundle)): sha256(path) if path.is_file() else None
        for path in sorted(bundle.rglob("*"))
    }


@pytest.mark.parametrize("share", [0.0, -0.5, 1.01, float("nan")])
def test_a_share_is_more_than_none_and_at_most_all(share: float, shapes_bundle: Path) -> None:
    with pytest.raises(OptionError, match="min_agreement"):
        quantize(shapes_bundle, [ROUGH], dataclasses.replace(OPTIONS, min_agreement=share))
