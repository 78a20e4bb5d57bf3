"""Bundles with adapters, made once."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest

from paligemma_edge.export.checkpoint.text_config import SlidingWindow
from paligemma_edge.quantize.recipes.recipe import Recipe
from tests.conftest import MakeCheckpoint
from tests.helpers.lora_models import EVERYTHING, GEMMA2, SIZES, TRANSFORMED, Model


@pytest.fixture(scope="session")
def model(make_checkpoint: MakeCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """All shipped recipes, calibrated, with the adapter "one"; tests must not change it."""
    from paligemma_edge.quantize.recipes.recipe import load_recipe, shipped

    recipes = [None, TRANSFORMED, *map(load_recipe, shipped())]
    return make(tmp_path_factory.mktemp("gemma"), make_checkpoint(text=SIZES), recipes)


@pytest.fixture(scope="session", params=["full", "hf"])
def second(
    request: pytest.FixtureRequest,
    make_checkpoint: MakeCheckpoint,
    tmp_path_factory: pytest.TempPathFactory,
) -> Model:
    """A PaliGemma 2 with the adapter "one"; answers attend to everything, or to 8 tokens."""
    window = GEMMA2 if request.param == "hf" else {**GEMMA2, "sliding_window": 4096}
    base, folder = make_checkpoint(text={**SIZES, **window}), tmp_path_factory.mktemp("gemma2")
    recipes = [
        None,
        TRANSFORMED,
        dataclasses.replace(TRANSFORMED, prefill=False, name="cpu-transformed2"),
    ]
    return make(folder, base, recipes, sliding_window=request.param)


@pytest.fixture
def small(model: Model, tmp_path: Path) -> Model:
    """A bundle of its own, with the lossless variant and no adapter."""
    from paligemma_edge.export.exporter import export

    bundle = tmp_path / "small.bundle"
    export(model.base, bundle)
    return Model(model.base, bundle, model.adapter)


def make(
    folder: Path,
    base: Path,
    recipes: Sequence[Recipe | None],
    sliding_window: SlidingWindow = "full",
) -> Model:
    from paligemma_edge.export.exporter import export
    from paligemma_edge.export.lora.add_to_bundle import add_adapter
    from paligemma_edge.quantize.fidelity.questions import sample_questions
    from tests.helpers import adapters as peft

    bundle, questions = folder / "a.bundle", sample_questions()[:2]
    export(base, bundle, variants=recipes, questions=questions, sliding_window=sliding_window)
    adapter = peft.train(base, folder / "lora", **EVERYTHING)
    add_adapter(bundle, adapter, "one")
    return Model(base, bundle, adapter)
