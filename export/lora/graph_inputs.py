"""An adapter as the inputs of LoRA graphs: A, B and shift of each layer that it changes.

Layers that the graphs join into one product are joined here too: their A side by side, their B as
blocks on a diagonal. What cannot be an input is an error that names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from paligemma_edge.export.checkpoint.name_list import join_tensor_names
from paligemma_edge.export.lora.adapter import LowRank, PeftAdapter, read_values
from paligemma_edge.export.lora.base_layers import Base, BaseLayer
from paligemma_edge.quantize.graphs.check_finite import all_finite
from paligemma_edge.quantize.graphs.derived_weights import Float
from paligemma_edge.quantize.transforms.changes import Branch, Changes
from paligemma_edge.runtime.contract import ComputeDtype, adapter_inputs
from paligemma_edge.runtime.errors import CheckpointError, OptionError

_DTYPES: Mapping[ComputeDtype, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


def branches_of(adapter: PeftAdapter, base: Base) -> dict[str, Branch]:
    """What an adapter adds to each layer of the graphs, by name; B includes the scale.

    CheckpointError where it changes more than linear layers, or holds NaN or Inf once scaled.
    """
    _check_switchable(adapter, base)
    return {
        name: _join(layer, changed, adapter)
        for name, layer in base.layers.items()
        if (changed := [part for part in layer.rows if part in adapter.layers])
    }


def inputs_of(
    branches: Mapping[str, Branch], changes: Changes, dtype: ComputeDtype
) -> dict[str, NDArray[Any]]:
    """The arrays that LoRA graphs take, by input name; `changes` are those of the weights.

    bfloat16 is given as uint16 words. OptionError where `dtype` does not reach.
    """
    inputs: dict[str, NDArray[Any]] = {}
    for layer, branch in branches.items():
        with np.errstate(over="ignore", invalid="ignore"):  # `_stored` checks the result
            followed = branch.after(changes.get(layer, ()))
        arrays = (followed.a.T, followed.b.T, followed.shift)
        for name, array in zip(adapter_inputs(layer), arrays, strict=True):
            if array is not None:
                inputs[name] = _stored(name, array, dtype)
    return inputs


def _check_switchable(adapter: PeftAdapter, base: Base) -> None:
    products = {part for layer in base.layers.values() for part in layer.rows}
    others = [name for name in adapter.layers if name not in products]
    dora = [name for name, change in adapter.layers.items() if change.magnitude is not None]
    if adapter.tensors:
        _reject(adapter, f"replaces whole tensors, which are {join_tensor_names(adapter.tensors)}")
    if others:
        _reject(adapter, f"changes {join_tensor_names(others)}, wanted only linear layers")
    if dora:
        _reject(adapter, f"has DoRA on {join_tensor_names(dora)}, which needs the weight itself")


def _reject(adapter: PeftAdapter, problem: str) -> NoReturn:
    raise CheckpointError(
        f"{adapter.directory} {problem}; it cannot be switched at run time: merge it into a bundle "
        "of its own with `paligemma-edge export --adapter`"
    )


def _join(layer: BaseLayer, changed: list[str], adapter: PeftAdapter) -> Branch:
    changes = {name: adapter.layers[name] for name in changed}
    rank = sum(change.rank for change in changes.values())
    a = np.concatenate([read_values(change.a, adapter.directory) for change in changes.values()])
    b, row, column = np.zeros((layer.out_features, rank), np.float32), 0, 0
    for name, rows in layer.rows.items():
        if (change := changes.get(name)) is not None:
            b[row : row + rows, column : column + change.rank] = _scaled(change, adapter)
            column += change.rank
        row += rows
    return Branch(a, b)


def _scaled(change: LowRank, adapter: PeftAdapter) -> Float:
    with np.errstate(over="ignore"):  # checked below
        scaled = read_values(change.b, adapter.directory) * np.float32(change.scale)
    if not all_finite(scaled):
        raise CheckpointError(
            f"{adapter.directory} scales {change.b.name} by {change.scale:g}, beyond float32; the "
            "adapter is damaged: train or download it again"
        )
    return scaled


def _stored(name: str, array: Float, dtype: ComputeDtype) -> NDArray[Any]:
    with np.errstate(over="ignore"):  # checked below
        stored = np.ascontiguousarray(array.astype(_DTYPES[dtype]))
    if not all_finite(stored):
        raise OptionError(
            f"{name} holds {np.abs(array).max():.6g}, {dtype} does not reach that far; name "
            "variants with --variant that compute in bfloat16 or float32"
        )
    return stored.view(np.uint16) if dtype == "bfloat16" else stored
