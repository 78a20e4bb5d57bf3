"""Tiny bases whose bundles have an adapter, and checks of their files."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from paligemma_edge.quantize.recipes.recipe import Assignment, Recipe, Scheme
from paligemma_edge.runtime.bundle.bundle import Bundle
from tests.helpers.lora_graphs import Array, pixels

SIZES = {"hidden_size": 64, "intermediate_size": 96}  # multiples of 32, for CUDA's blocks
GEMMA2: dict[str, Any] = {
    "model_type": "gemma2",
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "query_pre_attn_scalar": 25,
    "sliding_window": 8,
}
# Every transform, and weights that are not rounded: any error left is the adapter's.
TRANSFORMED = Recipe(
    about="a test",
    weights="float32",
    rotate=True,
    smooth=0.6,
    prefill=True,
    schemes={"float": Scheme(kind="float")},
    layers=(Assignment(match="*", scheme="float"),),
    name="cpu-transformed",
)
DECODER = r".*language_model.*\.(q_proj|v_proj|down_proj)"
EVERYTHING: dict[str, Any] = {
    "target_modules": "all-linear",
    "use_rslora": True,
    "rank_pattern": {r"layers.\d+.mlp.(gate|up)_proj": 7, "v_proj": 3},
    "alpha_pattern": {"fc1": 2.5},
}


@dataclasses.dataclass(frozen=True)
class Model:
    """A base, its bundle with some variants, and an adapter of all its layers."""

    base: Path
    bundle: Path
    adapter: Path

    @property
    def seen(self) -> Array:
        return pixels(self.bundle)


def contents(path: Path) -> dict[str, bytes]:
    files = (p for p in path.rglob("*") if p.is_file())
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in files}


def check_whole(path: Path) -> Bundle:
    """Every listed file is undamaged, and there are no others."""
    bundle = Bundle.open(path)
    bundle.verify(bundle.manifest.files)
    assert set(contents(path)) == {*bundle.manifest.files, "manifest.json"}
    return bundle
