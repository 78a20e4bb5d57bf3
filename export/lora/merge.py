"""Adapters merged into the tensors of a checkpoint, each tensor when it is read.

Computes as peft's `merge_and_unload` does on a model that was loaded in the checkpoint's dtype:
the change in float32, the sum rounded to the weight's own dtype, one adapter after another. torch
may add up in another order: of a LoRA a weight then differs by one rounding step at most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from paligemma_edge.export.checkpoint.tensors import (
    Array,
    CastTensor,
    CheckpointTensor,
    ComputedTensor,
)
from paligemma_edge.export.lora.adapter import LowRank, PeftAdapter, read_values
from paligemma_edge.quantize.graphs.check_finite import all_finite
from paligemma_edge.runtime.errors import CheckpointError


def merge_adapters(
    tensors: Mapping[str, CheckpointTensor], adapters: Sequence[PeftAdapter]
) -> dict[str, CheckpointTensor]:
    """The tensors of a checkpoint, by internal name, as they are after the adapters in turn.

    Shapes and dtypes stay. Reading one raises CheckpointError, which names
    it, where it or the adapter holds NaN or Inf, or where the sum would.
    """
    merged = dict(tensors)
    for adapter in adapters:
        for name, tensor in adapter.tensors.items():
            merged[name] = CastTensor(tensor, merged[name].dtype, str(adapter.directory))
        for layer, change in adapter.layers.items():
            weight = merged[f"{layer}.weight"]
            merged[f"{layer}.weight"] = _changed(weight, change, layer, adapter.directory)
    return merged


def _changed(
    weight: CheckpointTensor, change: LowRank, layer: str, directory: Path
) -> CheckpointTensor:
    shape: tuple[int, ...] = tuple(weight.shape.numpy())

    def compute() -> Array:
        stored = weight.array()
        _require_finite_weight(stored, layer, directory)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # checked below
            merged = _merge(stored, change, directory).reshape(shape).astype(stored.dtype)
        _require_finite_sum(merged, layer, directory)
        return merged

    return ComputedTensor(compute, weight.dtype, shape, str(weight.name))


def _merge(weight: Array, change: LowRank, directory: Path) -> NDArray[np.float32]:
    """The sum as a matrix, in float32: of every dtype here, that holds the weight exactly."""
    a, b = (read_values(part, directory) for part in (change.a, change.b))
    merged: NDArray[np.float32] = b @ a
    merged *= np.float32(change.scale)
    merged += weight.astype(np.float32, copy=False).reshape(merged.shape)
    if change.magnitude is not None:  # DoRA: each row keeps its direction and gets its length
        magnitude = read_values(change.magnitude, directory)
        merged *= (magnitude / _lengths(merged))[:, np.newaxis]
    return merged


def _lengths(matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """The norm of each row, added up in float64 and without a copy of the matrix."""
    return np.sqrt(np.einsum("ij,ij->i", matrix, matrix, dtype=np.float64)).astype(np.float32)


def _require_finite_weight(stored: Array, layer: str, directory: Path) -> None:
    if not all_finite(stored):
        raise CheckpointError(
            f"the weights of {layer} hold NaN or Inf, wanted numbers to merge {directory} into; "
            "download or save the checkpoint again"
        )


def _require_finite_sum(merged: Array, layer: str, directory: Path) -> None:
    if not all_finite(merged):
        raise CheckpointError(
            f"merging {layer} of {directory} gives numbers that {merged.dtype} cannot hold; the "
            "adapter is damaged, or was trained on another base"
        )
