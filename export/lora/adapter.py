"""A LoRA adapter as PEFT saves it: its A and B, by the internal names of the layers.

Reads `adapter_config.json` and `adapter_model.safetensors`, and checks every tensor against the
base that it was trained on. Does not know whether the adapter is then merged or switched.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from paligemma_edge.export.checkpoint.content import has_file
from paligemma_edge.export.checkpoint.name_list import join_names, join_tensor_names
from paligemma_edge.export.checkpoint.safetensors_file import read_safetensors
from paligemma_edge.export.checkpoint.tensor_names import EMBEDDING, LM_HEAD
from paligemma_edge.export.checkpoint.tensor_shapes import Shape
from paligemma_edge.export.checkpoint.tensors import (
    CheckpointTensor,
    ComputedTensor,
    FileTensor,
    same_values,
)
from paligemma_edge.export.lora.config import LoraConfig, read_lora_config
from paligemma_edge.export.lora.keys import LayerKeys, Part, sort_keys
from paligemma_edge.quantize.graphs.check_finite import all_finite
from paligemma_edge.runtime.errors import CheckpointError

WEIGHTS_FILE = "adapter_model.safetensors"
_PICKLE_FILE = "adapter_model.bin"
_TABLES = (EMBEDDING, LM_HEAD)
_EMBEDDING_MODULE = ".position_embedding"


@dataclass(frozen=True, kw_only=True)
class LowRank:
    """The change of a layer whose weight is [out, in], read as a matrix: scale * B @ A.

    Of a convolution `in` is channels x height x width; of an embedding `out` is its rows.
    """

    a: CheckpointTensor  # [rank, in]
    b: CheckpointTensor  # [out, rank]
    scale: float
    magnitude: CheckpointTensor | None = None  # [out], DoRA's: the norm of each row after merging

    @property
    def rank(self) -> int:
        """Rows of A."""
        return int(self.a.shape.numpy()[0])


@dataclass(frozen=True, kw_only=True)
class PeftAdapter:
    """The changes of an adapter."""

    directory: Path
    layers: Mapping[str, LowRank]  # by internal layer name, as "decoder.layers.0.q_proj"
    tensors: Mapping[str, CheckpointTensor]  # trained as a whole, by internal tensor name

    @property
    def file(self) -> Path:
        """The file that holds the tensors."""
        return self.directory / WEIGHTS_FILE


def read_adapter(directory: Path, shapes: Mapping[str, Shape]) -> PeftAdapter:
    """Open an adapter for a base whose tensors have `shapes`, by internal name.

    Reads headers, and values only of embedding tables that are stored twice. Raises CheckpointError
    when the adapter is of another kind or base, or has a tensor of no known layer.
    """
    config = read_lora_config(directory)
    stored = read_safetensors(_weights_file(directory))
    keys = sort_keys(stored, shapes)
    if keys.unknown:
        raise CheckpointError(
            f"{directory} changes layers that this PaliGemma does not have: "
            f"{join_names(keys.unknown)}; give an adapter that was trained on this base"
        )
    _reject_tables(directory, keys.layers)
    layers = {
        name: _read_layer(_StoredLayer(directory, config, layer, stored), shapes[f"{name}.weight"])
        for name, layer in keys.layers.items()
    }
    copies = {name: [stored[key] for key in same] for name, same in keys.tensors.items()}
    tensors = _trained_tensors(directory, copies, shapes)
    if not layers and not tensors:
        raise CheckpointError(f"{directory} changes nothing; give an adapter that was trained")
    return PeftAdapter(directory=directory, layers=layers, tensors=tensors)


def read_values(tensor: CheckpointTensor, origin: Path | str) -> NDArray[np.float32]:
    """A tensor of an adapter in float32; CheckpointError where it holds NaN or Inf."""
    array = tensor.array()
    if not all_finite(array):
        raise CheckpointError(
            f"{origin} holds NaN or Inf in {tensor.name}; the adapter is damaged: train or "
            "download it again"
        )
    return np.asarray(array, np.float32)


def _weights_file(directory: Path) -> Path:
    if has_file(directory / WEIGHTS_FILE):
        return directory / WEIGHTS_FILE
    if (directory / _PICKLE_FILE).is_file():
        raise CheckpointError(
            f"{directory} holds {_PICKLE_FILE}, a pickle, which can run code, wanted "
            f"{WEIGHTS_FILE}; load the adapter with peft and save it again by "
            "save_pretrained(target, safe_serialization=True)"
        )
    raise CheckpointError(f"{directory} has no {WEIGHTS_FILE}; finish the download")


def _reject_tables(directory: Path, layers: Mapping[str, LayerKeys]) -> None:
    """Embedding and head share one table, so a LoRA on one of them would change the other too.

    peft merges it anyway, and the merged model then differs from the model with the adapter.
    """
    if tables := [name for name in layers if f"{name}.weight" in _TABLES]:
        raise CheckpointError(
            f"{directory} has a LoRA on {' and '.join(tables)}, which PaliGemma has as one table: "
            "merging it would change both ends; train without it, or save whole tables by "
            "modules_to_save=['embed_tokens'] and ensure_weight_tying=True"
        )


@dataclass(frozen=True)
class _StoredLayer:
    """One layer of the file, with the adapter's config."""

    directory: Path
    config: LoraConfig
    keys: LayerKeys
    stored: Mapping[str, FileTensor]

    @property
    def module(self) -> str:
        return self.keys.module

    @property
    def rank(self) -> int:
        return self.config.rank_of(self.module)

    @property
    def scale(self) -> float:
        return self.config.scale_of(self.module)

    def tensors(self, wanted: Mapping[Part, Shape]) -> Mapping[Part, FileTensor]:
        """The layer's tensors; an error unless they are exactly those of `wanted`."""
        if self.config.dora and "lora_magnitude_vector" not in wanted:
            raise CheckpointError(
                f"{self.directory} has DoRA on {self.module}, wanted it only on linear layers; "
                "merge the adapter with peft and export what that gives"
            )
        parts = {part: self.stored[key] for part, key in self.keys.parts.items()}
        actual = {part: tuple(tensor.shape.numpy()) for part, tensor in parts.items()}
        if actual != wanted:
            raise CheckpointError(
                f"{self.directory} has {_format(actual)} of {self.module}, wanted "
                f"{_format(wanted)} by its adapter_config.json and the base; give an adapter and "
                "the base that it was trained on"
            )
        return parts


def _read_layer(stored: _StoredLayer, shape: Shape) -> LowRank:
    if stored.module.endswith(_EMBEDDING_MODULE):
        return _read_embedding(stored, shape)
    ones = (1,) * len(shape[2:])  # of a convolution
    wanted: dict[Part, Shape] = {
        "lora_A": (stored.rank, *shape[1:]),
        "lora_B": (shape[0], stored.rank, *ones),
    }
    if stored.config.dora and not ones:
        wanted["lora_magnitude_vector"] = shape[:1]
    parts = stored.tensors(wanted)
    return LowRank(
        a=parts["lora_A"].reshaped((stored.rank, math.prod(shape[1:]))),
        b=parts["lora_B"].reshaped((shape[0], stored.rank)),
        scale=stored.scale,
        magnitude=parts.get("lora_magnitude_vector"),
    )


def _read_embedding(stored: _StoredLayer, shape: Shape) -> LowRank:
    """For an embedding PEFT swaps A and B, and transposes their product."""
    rows, width = shape
    wanted: dict[Part, Shape] = {
        "lora_embedding_A": (stored.rank, rows),
        "lora_embedding_B": (width, stored.rank),
    }
    parts = stored.tensors(wanted)
    a, b = _transposed(parts["lora_embedding_B"]), _transposed(parts["lora_embedding_A"])
    return LowRank(a=a, b=b, scale=stored.scale)


def _format(shapes: Mapping[Part, Shape]) -> str:
    return ", ".join(f"{part} {list(shapes[part])}" for part in sorted(shapes))


def _transposed(tensor: FileTensor) -> CheckpointTensor:
    rows, columns = tensor.shape.numpy()
    return ComputedTensor(lambda: tensor.array().T, tensor.dtype, (columns, rows), str(tensor.name))


def _trained_tensors(
    directory: Path, stored: Mapping[str, list[FileTensor]], shapes: Mapping[str, Shape]
) -> dict[str, CheckpointTensor]:
    """Tensors trained as a whole; one may be stored twice, and a table needs both ends trained."""
    tensors: dict[str, CheckpointTensor] = {}
    for name, copies in stored.items():
        inner = EMBEDDING if name == LM_HEAD else name
        first = tensors.setdefault(inner, copies[0])
        if not all(copy is first or same_values(first, copy) for copy in copies):
            raise CheckpointError(
                f"{directory} has two values of {inner}: {copies[-1].name} differs from "
                f"{first.name}; PaliGemma has one table at both ends: train them tied"
            )
    tables = [name for name in _TABLES if name in stored]
    if len(tables) == 1:
        raise CheckpointError(
            f"{directory} replaces {tables[0]} alone, and PaliGemma has one table at both ends; "
            "train with ensure_weight_tying=True"
        )
    if odd := [name for name, tensor in tensors.items() if tensor.shape.numpy() != shapes[name]]:
        raise CheckpointError(
            f"{directory} has other shapes than the base, as {odd[0]} "
            f"{list(tensors[odd[0]].shape.numpy())} and not {list(shapes[odd[0]])}: "
            f"{join_tensor_names(odd)}; give an adapter and the base that it was trained on"
        )
    return tensors
