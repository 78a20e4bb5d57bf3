"""Adapters merged into the tensors of a checkpoint, each tensor when it is read.

Computes as peft's `merge_and_unload` does on a model that was loaded in the checkpoint's dtype:
the change in float32, the sum rounded to the weight's own dtype, one adapter after another. It
does so with torch, and with the same calls, so that on one machine the last bit is the same too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from paligemma_edge.export.checkpoint.tensors import (
    Array,
    CastTensor,
    CheckpointTensor,
    ComputedTensor,
)
from paligemma_edge.export.lora.adapter import LowRank, PeftAdapter
from paligemma_edge.runtime.errors import CheckpointError

if TYPE_CHECKING:
    import torch


def merge_adapters(
    tensors: Mapping[str, CheckpointTensor], adapters: Sequence[PeftAdapter]
) -> dict[str, CheckpointTensor]:
    """The tensors of a checkpoint, by internal name, as they are after the adapters in turn.

    Shapes and dtypes stay. Reading one raises CheckpointError where a sum is NaN or infinite.
    """
    merged = dict(tensors)
    for adapter in adapters:
        for name, tensor in adapter.tensors.items():
            merged[name] = CastTensor(tensor, merged[name].dtype)
        for layer, change in adapter.layers.items():
            weight = merged[f"{layer}.weight"]
            merged[f"{layer}.weight"] = _changed(weight, change, f"{layer} of {adapter.directory}")
    return merged


def _changed(weight: CheckpointTensor, change: LowRank, origin: str) -> CheckpointTensor:
    shape: tuple[int, ...] = tuple(weight.shape.numpy())

    def compute() -> Array:
        stored = weight.array()
        with np.errstate(over="ignore"):  # checked below
            merged = _merge(stored, change).reshape(shape).astype(stored.dtype)
        _require_finite(merged, origin)
        return merged

    return ComputedTensor(compute, weight.dtype, shape, str(weight.name))


def _merge(weight: Array, change: LowRank) -> NDArray[np.float32]:
    """The sum as a matrix, in float32: of every dtype here, that holds the weight exactly."""
    import torch  # 200 MB, and only where there is something to merge

    a, b = _tensor(change.a), _tensor(change.b)
    merged = torch.matmul(b, a).mul_(change.scale)
    merged += torch.from_numpy(weight.astype(np.float32).reshape(merged.shape))
    if change.magnitude is not None:  # DoRA: each row keeps its direction and gets its length
        lengths = _tensor(change.magnitude) / torch.linalg.norm(merged, dim=1)
        merged *= lengths.view(-1, 1)
    return merged.numpy()


def _tensor(stored: CheckpointTensor) -> torch.Tensor:
    import torch

    return torch.from_numpy(stored.array().astype(np.float32))


def _require_finite(merged: Array, origin: str) -> None:
    if not np.isfinite(merged).all():
        raise CheckpointError(
            f"merging {origin} gives numbers that {merged.dtype} cannot hold; the adapter is "
            "damaged, or was trained on another base"
        )
