"""A LoRA adapter as PEFT saves it, opened: what it changes, by the internal names of the layers.

Reads `adapter_config.json` and `adapter_model.safetensors`, and checks every tensor against the
base that it was trained for. Knows nothing of what the changes are then put to: merged into the
weights, or kept apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from paligemma_edge.export.checkpoint.listed import listed
from paligemma_edge.export.checkpoint.names import EMBEDDING, LM_HEAD, Shape, compact
from paligemma_edge.export.checkpoint.tensors import (
    CheckpointTensor,
    ComputedTensor,
    FileTensor,
    read_tensors,
    same_values,
)
from paligemma_edge.export.lora.adapter_config import AdapterConfig, read_adapter_config
from paligemma_edge.export.lora.adapter_keys import LayerKeys, Part, sort_keys
from paligemma_edge.quantize.graphs.finite import all_finite
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
    magnitude: CheckpointTensor | None = None  # [out], DoRA's: how long each row is afterwards

    @property
    def rank(self) -> int:
        """Rows of A."""
        return int(self.a.shape.numpy()[0])


@dataclass(frozen=True, kw_only=True)
class PeftAdapter:
    """All that an adapter changes."""

    directory: Path
    layers: Mapping[str, LowRank]  # by internal layer name, as "decoder.layers.0.q_proj"
    tensors: Mapping[str, CheckpointTensor]  # trained as a whole, by internal tensor name

    @property
    def file(self) -> Path:
        """The file that holds the tensors."""
        return self.directory / WEIGHTS_FILE


def read_adapter(directory: Path, shapes: Mapping[str, Shape]) -> PeftAdapter:
    """Open an adapter for a base whose tensors have `shapes`, by internal name.

    Reads headers, and no value but those of an embedding table. Raises CheckpointError when the
    adapter is of another kind or of another base, and when a tensor of it would be left over.
    """
    config = read_adapter_config(directory)
    stored = read_tensors(_weights_file(directory))
    keys = sort_keys(stored, shapes)
    if keys.unknown:
        raise CheckpointError(
            f"{directory} changes what is no part of a PaliGemma: {listed(keys.unknown)}; give an "
            "adapter that was trained on this base"
        )
    _refuse_tables(directory, keys.layers)
    layers = {
        name: _read_layer(_Found(directory, config, found, stored), shapes[f"{name}.weight"])
        for name, found in keys.layers.items()
    }
    copies = {name: [stored[key] for key in found] for name, found in keys.tensors.items()}
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
    if (directory / WEIGHTS_FILE).is_file():
        return directory / WEIGHTS_FILE
    if (directory / _PICKLE_FILE).is_file():
        raise CheckpointError(
            f"{directory} holds {_PICKLE_FILE}, a pickle, which can run code, wanted "
            f"{WEIGHTS_FILE}; load the adapter with peft and save it again by "
            "save_pretrained(target, safe_serialization=True)"
        )
    raise CheckpointError(f"{directory} has no {WEIGHTS_FILE}; finish the download")


def _refuse_tables(directory: Path, layers: Mapping[str, LayerKeys]) -> None:
    """One table is read at both ends, so that what is added for one end changes the other too.

    peft merges all the same, and the model then answers otherwise than the adapter did.
    """
    if tables := [name for name in layers if f"{name}.weight" in _TABLES]:
        raise CheckpointError(
            f"{directory} has a LoRA on {' and '.join(tables)}, which PaliGemma has as one table: "
            "merging it would change both ends; train without it, or save whole tables by "
            "modules_to_save=['embed_tokens'] and ensure_weight_tying=True"
        )


@dataclass(frozen=True)
class _Found:
    """One layer of a file, and what the adapter's config says of it."""

    directory: Path
    config: AdapterConfig
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
        """The layer's tensors, which are those of `wanted` and no others."""
        if self.config.dora and "lora_magnitude_vector" not in wanted:
            raise CheckpointError(
                f"{self.directory} has DoRA on {self.module}, wanted it on linear layers alone; "
                "merge the adapter with peft and export what that gives"
            )
        parts = {part: self.stored[key] for part, key in self.keys.parts.items()}
        found = {part: tuple(tensor.shape.numpy()) for part, tensor in parts.items()}
        if found != wanted:
            raise CheckpointError(
                f"{self.directory} has {_said(found)} of {self.module}, wanted {_said(wanted)} by "
                "its adapter_config.json and the base; give an adapter and the base that it was "
                "trained on"
            )
        return parts


def _read_layer(found: _Found, shape: Shape) -> LowRank:
    if found.module.endswith(_EMBEDDING_MODULE):
        return _read_embedding(found, shape)
    ones = (1,) * len(shape[2:])  # of a convolution
    wanted: dict[Part, Shape] = {
        "lora_A": (found.rank, *shape[1:]),
        "lora_B": (shape[0], found.rank, *ones),
    }
    if found.config.dora and not ones:
        wanted["lora_magnitude_vector"] = shape[:1]
    parts = found.tensors(wanted)
    return LowRank(
        a=parts["lora_A"].reshaped((found.rank, math.prod(shape[1:]))),
        b=parts["lora_B"].reshaped((shape[0], found.rank)),
        scale=found.scale,
        magnitude=parts.get("lora_magnitude_vector"),
    )


def _read_embedding(found: _Found, shape: Shape) -> LowRank:
    """Of an embedding PEFT has A and B the other way round, and turns their product."""
    rows, width = shape
    wanted: dict[Part, Shape] = {
        "lora_embedding_A": (found.rank, rows),
        "lora_embedding_B": (width, found.rank),
    }
    parts = found.tensors(wanted)
    a, b = _transposed(parts["lora_embedding_B"]), _transposed(parts["lora_embedding_A"])
    return LowRank(a=a, b=b, scale=found.scale)


def _said(shapes: Mapping[Part, Shape]) -> str:
    return ", ".join(f"{part} {list(shapes[part])}" for part in sorted(shapes))


def _transposed(tensor: FileTensor) -> CheckpointTensor:
    rows, columns = tensor.shape.numpy()
    return ComputedTensor(lambda: tensor.array().T, tensor.dtype, (columns, rows), str(tensor.name))


def _trained_tensors(
    directory: Path, found: Mapping[str, list[FileTensor]], shapes: Mapping[str, Shape]
) -> dict[str, CheckpointTensor]:
    """Whole tensors. An adapter may hold one twice, and has a table at both ends or at none."""
    tensors: dict[str, CheckpointTensor] = {}
    for name, copies in found.items():
        inner = EMBEDDING if name == LM_HEAD else name
        first = tensors.setdefault(inner, copies[0])
        if not all(copy is first or same_values(first, copy) for copy in copies):
            raise CheckpointError(
                f"{directory} has two values of {inner}: {copies[-1].name} differs from "
                f"{first.name}; PaliGemma has one table at both ends: train them tied"
            )
    tables = [name for name in _TABLES if name in found]
    if len(tables) == 1:
        raise CheckpointError(
            f"{directory} replaces {tables[0]} alone, and PaliGemma has one table at both ends; "
            "train with ensure_weight_tying=True"
        )
    if odd := [name for name, tensor in tensors.items() if tensor.shape.numpy() != shapes[name]]:
        raise CheckpointError(
            f"{directory} has other shapes than the base, as {odd[0]} "
            f"{list(tensors[odd[0]].shape.numpy())} and not {list(shapes[odd[0]])}: "
            f"{compact(odd)}; give an adapter and the base that it was trained on"
        )
    return tensors
