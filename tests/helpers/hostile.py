"""A checkpoint with planted outlier channels, whose function is still the same.

Some channels come out of a norm, of `up_proj` or of a vision block's values sixty times too
large, and the next weights read them sixty times too small: what large models are like, and what
8-bit inputs cannot represent.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

FACTOR = np.float32(60)

_TEXT = "language_model.model.layers"
_VISION = "vision_tower.vision_model.encoder.layers"
_WEIGHTS = "model.safetensors"

_Tensors: TypeAlias = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Planted:
    """Where outliers are planted."""

    norms: bool = True  # of both models
    products: bool = True  # up_proj to down_proj, and the values of the vision encoder


def plant(checkpoint: Path, target: Path, planted: Planted) -> Path:
    """Write a copy of the checkpoint in float32, every layer of it with outlier channels."""
    shutil.copytree(checkpoint, target)
    tensors = {name: t.float().numpy() for name, t in load_file(target / _WEIGHTS).items()}
    rng = np.random.default_rng(60)
    for layer in range(_count(tensors, _TEXT)):
        _plant_text(tensors, f"{_TEXT}.{layer}", planted, rng)
    for layer in range(_count(tensors, _VISION)):
        _plant_vision(tensors, f"{_VISION}.{layer}", planted, rng)
    _save(tensors, target / _WEIGHTS)
    return target


def _plant_text(tensors: _Tensors, block: str, planted: Planted, rng: np.random.Generator) -> None:
    attention = [f"{block}.self_attn.{part}_proj" for part in "qkv"]
    mlp = [f"{block}.mlp.{part}_proj" for part in ("gate", "up")]
    if planted.norms:
        _plant_rms_norm(tensors, f"{block}.input_layernorm", attention, rng)
        _plant_rms_norm(tensors, f"{block}.post_attention_layernorm", mlp, rng)
    if planted.products:
        _plant_product(tensors, mlp[1], f"{block}.mlp.down_proj", rng)


def _plant_vision(
    tensors: _Tensors, block: str, planted: Planted, rng: np.random.Generator
) -> None:
    attention = [f"{block}.self_attn.{part}_proj" for part in "qkv"]
    if planted.norms:
        _plant_layer_norm(tensors, f"{block}.layer_norm1", attention, rng)
        _plant_layer_norm(tensors, f"{block}.layer_norm2", [f"{block}.mlp.fc1"], rng)
    if planted.products:
        _plant_product(tensors, attention[2], f"{block}.self_attn.out_proj", rng)


def _plant_rms_norm(
    tensors: _Tensors, norm: str, readers: Sequence[str], rng: np.random.Generator
) -> None:
    """The gain is 1 + w."""
    weight = tensors[f"{norm}.weight"]
    channels = _some(weight, rng)
    weight[channels] = FACTOR * (1 + weight[channels]) - 1
    _shrink_columns(tensors, readers, channels)


def _plant_layer_norm(
    tensors: _Tensors, norm: str, readers: Sequence[str], rng: np.random.Generator
) -> None:
    channels = _some(tensors[f"{norm}.weight"], rng)
    for part in ("weight", "bias"):
        tensors[f"{norm}.{part}"][channels] *= FACTOR
    _shrink_columns(tensors, readers, channels)


def _plant_product(tensors: _Tensors, writer: str, reader: str, rng: np.random.Generator) -> None:
    """What stands between the two layers is linear in the writer's rows."""
    channels = _some(tensors[f"{writer}.weight"], rng)
    for part in ("weight", "bias"):
        if f"{writer}.{part}" in tensors:
            tensors[f"{writer}.{part}"][channels] *= FACTOR
    _shrink_columns(tensors, [reader], channels)


def _shrink_columns(tensors: _Tensors, layers: Sequence[str], channels: NDArray[np.int64]) -> None:
    for layer in layers:
        tensors[f"{layer}.weight"][:, channels] /= FACTOR


def _some(channels: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.int64]:
    """The numbers of one channel in sixteen."""
    return rng.choice(len(channels), len(channels) // 16, replace=False)


def _count(tensors: _Tensors, stack: str) -> int:
    numbers = {n.removeprefix(f"{stack}.").split(".")[0] for n in tensors if n.startswith(stack)}
    return len(numbers)


def _save(tensors: _Tensors, path: Path) -> None:
    import torch

    written = {name: torch.from_numpy(array) for name, array in tensors.items()}
    save_file(written, path, metadata={"format": "pt"})
