"""Models for the passes over graphs: the sample model, one of odd sizes, and a PaliGemma 2."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from paligemma_edge.runtime.bundle.bundle import Bundle
from tests.conftest import MakeCheckpoint
from tests.helpers.half_graphs import Array, answers
from tests.helpers.watched import AssertSame, Case

CLOSE = 1e-4  # of the largest logit
ODD_VISION = {"hidden_size": 48, "intermediate_size": 80, "num_attention_heads": 3}
ODD_TEXT = {
    "hidden_size": 72,
    "intermediate_size": 88,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 48,
}
GEMMA2_TEXT = {
    "model_type": "gemma2",
    "hidden_size": 96,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "head_dim": 32,
    "query_pre_attn_scalar": 24,
    "attn_logit_softcapping": 4.0,
    "final_logit_softcapping": 20.0,
    "sliding_window": 8,
}


@pytest.fixture(scope="session")
def odd_bundle(make_checkpoint: MakeCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Widths that no power of two divides well, and several heads of keys and values."""
    from paligemma_edge.export.exporter import export

    bundle = tmp_path_factory.mktemp("odd") / "odd.bundle"
    export(make_checkpoint(vision=ODD_VISION, text=ODD_TEXT), bundle)
    return bundle


@pytest.fixture(scope="session")
def gemma2_bundle(
    make_checkpoint: MakeCheckpoint, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A PaliGemma 2 whose layers see everything."""
    from paligemma_edge.export.exporter import export

    bundle = tmp_path_factory.mktemp("gemma2") / "gemma2.bundle"
    export(make_checkpoint(vision=ODD_VISION, text=GEMMA2_TEXT), bundle)
    return bundle


@pytest.fixture(scope="session")
def windowed_bundle(
    make_checkpoint: MakeCheckpoint, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A PaliGemma 2 whose answers see the last 8 tokens in every other layer."""
    from paligemma_edge.export.exporter import export

    bundle = tmp_path_factory.mktemp("windowed") / "windowed.bundle"
    checkpoint = make_checkpoint(vision=ODD_VISION, text=GEMMA2_TEXT)
    export(checkpoint, bundle, sliding_window="hf")
    return bundle


@pytest.fixture(scope="session", params=["shapes", "odd", "gemma2", "windowed"])
def case(request: pytest.FixtureRequest) -> Case:
    bundle: Path = request.getfixturevalue(f"{request.param}_bundle")
    config = Bundle.open(bundle).manifest
    side = config.image.size
    pixels = np.random.default_rng(1).uniform(-1, 1, (2, 3, side, side)).astype(np.float32)
    return Case(bundle, config.model, pixels)


@pytest.fixture(scope="session")
def exact(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Array:
    """The logits [2, vocab] of the graphs as they are, after a prompt and after one step."""
    return answers(
        case.graphs(), case.config, case.pixels[:1], tmp_path_factory.mktemp("exact") / "graphs"
    )


@pytest.fixture
def assert_same(case: Case, exact: Array, tmp_path: Path) -> AssertSame:
    """Asserts that graphs have those logits."""

    def assert_same(graphs: Mapping[str, ir.Model]) -> None:
        found = answers(graphs, case.config, case.pixels[:1], tmp_path / "changed")
        np.testing.assert_allclose(found, exact, rtol=0, atol=CLOSE * np.abs(exact).max())

    return assert_same
