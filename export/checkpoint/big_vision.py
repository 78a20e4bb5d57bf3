"""A checkpoint as big_vision saves it: an npz, whose layers are stacked along the first axis.

Knows big_vision's arrays (models/vit.py, models/ppp/gemma.py) and how each of them becomes
tensors under internal names: transposed, with no value changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from paligemma_edge.export.checkpoint.big_vision_arrays import BLOCK, LAYERS, TABLE, array_shapes
from paligemma_edge.export.checkpoint.big_vision_config import read_big_vision_config
from paligemma_edge.export.checkpoint.config import PaliGemmaConfig
from paligemma_edge.export.checkpoint.mask_decoder_weights import CODEBOOK
from paligemma_edge.export.checkpoint.name_list import join_names
from paligemma_edge.export.checkpoint.npz import read_npz
from paligemma_edge.export.checkpoint.tensor_names import EMBEDDING
from paligemma_edge.export.checkpoint.tensor_shapes import Shape, expected_shapes
from paligemma_edge.export.checkpoint.tensors import (
    NUMPY_DTYPES,
    Array,
    CheckpointTensor,
    ComputedTensor,
)
from paligemma_edge.runtime.errors import CheckpointError

_FOLDER = "params/"
_ATTENTION = f"{BLOCK}MultiHeadDotProductAttention_0/"

_Transform = Callable[[Array], Array]


@dataclass(frozen=True)
class _Source:
    """Where a tensor comes from: an array, leading indices into it, and how it is transposed."""

    array: str
    transform: _Transform
    index: tuple[int, ...] = ()


def read_big_vision(
    paths: Sequence[Path],
) -> tuple[PaliGemmaConfig, Mapping[str, CheckpointTensor]]:
    """Open an npz, whole or in parts: its config, and its tensors by internal name, still on disk.

    Names may begin with `params/`; then all others are skipped, such as an optimizer's
    state. Raises CheckpointError when the arrays are not a PaliGemma's.
    """
    arrays = read_npz(paths, _FOLDER)
    shapes = {name: tuple(array.shape.numpy()) for name, array in arrays.items()}
    if CODEBOOK in shapes:
        raise CheckpointError(
            f"{paths[0]} is PaliGemma's mask decoder, and no checkpoint; give the weights as "
            "CHECKPOINT and this file by --mask-decoder"
        )
    config = read_big_vision_config(shapes)
    _require(array_shapes(config, shapes[TABLE][0]), shapes)
    wanted = expected_shapes(config)
    tensors: dict[str, CheckpointTensor] = {
        name: _transformed(name, arrays[source.array], source, wanted[name])
        for name, source in _sources(config).items()
    }
    tensors[EMBEDDING] = PaddedTable(arrays[TABLE], wanted[EMBEDDING][0])
    return config, {name: tensors[name] for name in wanted}


class PaddedTable(CheckpointTensor):
    """An embedding table followed by rows of zeros, as many as Hugging Face appends.

    Theirs are random; zeros work as well, for no answer has an id from `<image>` on.
    """

    def __init__(self, table: CheckpointTensor, rows: int) -> None:
        width = int(table.shape.numpy()[1])
        super().__init__(table.dtype, (rows, width), str(table.name))
        self._table = table

    def read(self, start: int, stop: int) -> Array:
        """Read that part of the table, filled up with zeros."""
        array = np.zeros(stop - start, NUMPY_DTYPES[self.dtype])
        if start < self._table.size:
            stored = self._table.read(start, min(stop, self._table.size))
            array[: len(stored)] = stored
        return array


def _require(wanted: Mapping[str, Shape], shapes: Mapping[str, Shape]) -> None:
    misshapen = [
        f"{name} is {list(shapes[name])} and not {list(shape)}"
        for name, shape in wanted.items()
        if name in shapes and shapes[name] != shape
    ]
    problems = (
        ("missing", sorted(wanted.keys() - shapes.keys())),
        ("unexpected", sorted(shapes.keys() - wanted.keys())),
        ("misshapen", misshapen),
    )
    if listed := [f"{len(names)} {kind}: {join_names(names)}" for kind, names in problems if names]:
        raise CheckpointError(
            f"npz's arrays are not a PaliGemma's: {'; '.join(listed)}; "
            "give an npz as big_vision saves it"
        )


def _transformed(
    name: str, array: CheckpointTensor, source: _Source, shape: Shape
) -> CheckpointTensor:
    stacked: Shape = tuple(array.shape.numpy())
    inner = stacked[len(source.index) :]
    size, number = math.prod(inner), 0
    for index, length in zip(source.index, stacked, strict=False):
        number = number * length + index

    def compute() -> Array:
        return source.transform(array.read(number * size, (number + 1) * size).reshape(inner))

    return ComputedTensor(compute, array.dtype, shape, name)


def _sources(config: PaliGemmaConfig) -> dict[str, _Source]:
    """Of every tensor but the embedding table."""
    sources = {
        "vision.patch_embedding.weight": _Source("img/embedding/kernel", _patches),
        "vision.patch_embedding.bias": _Source("img/embedding/bias", _same),
        "vision.position_embedding.weight": _Source("img/pos_embedding", _same, (0,)),
        "vision.post_layernorm.weight": _Source("img/Transformer/encoder_norm/scale", _same),
        "vision.post_layernorm.bias": _Source("img/Transformer/encoder_norm/bias", _same),
        "projector.weight": _Source("img/head/kernel", _transposed),
        "projector.bias": _Source("img/head/bias", _same),
        "decoder.norm.weight": _Source("llm/final_norm/scale", _same),
    }
    for i in range(config.vision.num_layers):
        sources |= {f"vision.layers.{i}.{k}": v for k, v in _vision_layer(i).items()}
    for i in range(config.text.num_layers):
        layer = _text_layer(i, gemma2=config.text.gemma2 is not None)
        sources |= {f"decoder.layers.{i}.{k}.weight": v for k, v in layer.items()}
    return sources


def _vision_layer(i: int) -> dict[str, _Source]:
    norms = {
        f"layer_norm{n + 1}.{ours}": _Source(f"{BLOCK}LayerNorm_{n}/{theirs}", _same, (i,))
        for n in range(2)
        for ours, theirs in (("weight", "scale"), ("bias", "bias"))
    }
    linear = {
        "q_proj": (f"{_ATTENTION}query", _heads_last),
        "k_proj": (f"{_ATTENTION}key", _heads_last),
        "v_proj": (f"{_ATTENTION}value", _heads_last),
        "out_proj": (f"{_ATTENTION}out", _heads_first),
        "fc1": (f"{BLOCK}MlpBlock_0/Dense_0", _transposed),
        "fc2": (f"{BLOCK}MlpBlock_0/Dense_1", _transposed),
    }
    weights = {
        f"{k}.weight": _Source(f"{a}/kernel", transform, (i,))
        for k, (a, transform) in linear.items()
    }
    biases = {f"{k}.bias": _Source(f"{a}/bias", _flat, (i,)) for k, (a, _) in linear.items()}
    return norms | weights | biases


def _text_layer(i: int, *, gemma2: bool) -> dict[str, _Source]:
    norms = {"input_layernorm": "pre_attention_norm"}
    if gemma2:
        norms |= {
            "post_attention_layernorm": "post_attention_norm",
            "pre_feedforward_layernorm": "pre_ffw_norm",
            "post_feedforward_layernorm": "post_ffw_norm",
        }
    else:  # the same name in transformers means another norm
        norms |= {"post_attention_layernorm": "pre_ffw_norm"}
    return {
        **{ours: _Source(f"{LAYERS}{norm}/scale", _same, (i,)) for ours, norm in norms.items()},
        "q_proj": _Source(f"{LAYERS}attn/q_einsum/w", _heads_outer, (i,)),
        "k_proj": _Source(f"{LAYERS}attn/kv_einsum/w", _heads_outer, (i, 0)),
        "v_proj": _Source(f"{LAYERS}attn/kv_einsum/w", _heads_outer, (i, 1)),
        "o_proj": _Source(f"{LAYERS}attn/attn_vec_einsum/w", _heads_first, (i,)),
        "gate_proj": _Source(f"{LAYERS}mlp/gating_einsum", _transposed, (i, 0)),
        "up_proj": _Source(f"{LAYERS}mlp/gating_einsum", _transposed, (i, 1)),
        "down_proj": _Source(f"{LAYERS}mlp/linear", _transposed, (i,)),
    }


def _same(array: Array) -> Array:
    return array


def _flat(array: Array) -> Array:
    return array.reshape(-1)


def _transposed(array: Array) -> Array:
    return array.T


def _patches(array: Array) -> Array:
    """[patch, patch, 3, out] → [out, 3, patch, patch]."""
    return array.transpose(3, 2, 0, 1)


def _heads_last(array: Array) -> Array:
    """[in, heads, head_dim] → [heads * head_dim, in]."""
    return array.reshape(len(array), -1).T


def _heads_first(array: Array) -> Array:
    """[heads, head_dim, out] → [out, heads * head_dim]."""
    return array.reshape(-1, array.shape[-1]).T


def _heads_outer(array: Array) -> Array:
    """[heads, in, head_dim] → [heads * head_dim, in]."""
    return array.transpose(0, 2, 1).reshape(-1, array.shape[1])
