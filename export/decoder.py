"""Gemma as one graph for both phases: a prompt with its pictures, or one token of each slot.

No mask: a PaliGemma prompt sees itself whole, and a step sees everything before it, so
`GroupQueryAttention` with `causal=0` is exact in both phases. Rotary positions are 0-based;
only their differences matter (transformers counts from 1).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from paligemma_edge.export.config import TextConfig
from paligemma_edge.export.graph import FLOAT, INT32, INT64, Graph, lazy
from paligemma_edge.runtime import contract


@dataclass(frozen=True)
class _Attention:
    """What every layer's attention shares."""

    seqlens_k: ir.Value
    total_sequence_length: ir.Value
    cos: ir.Value
    sin: ir.Value


def build_decoder(config: TextConfig, tensors: Mapping[str, ir.TensorProtocol]) -> ir.Model:
    """The graph of contract.DECODER: ids, image features and cache in; logits and cache out."""
    graph = Graph.create(contract.DECODER, tensors)
    ids = graph.input(contract.INPUT_IDS, INT64, ["batch", "text"])
    features = graph.input(contract.IMAGE_FEATURES, FLOAT, ["batch", "image", config.hidden_size])
    shared = _shared_attention(graph, config)
    x = graph.op.Concat(features, _embed(graph, config, ids), axis=1)
    presents: list[ir.Value] = []
    for layer in range(config.num_layers):
        x, present = _block(graph, config, layer, x, shared)
        presents += present
    logits = _logits(graph, config, x)
    graph.output(logits, contract.LOGITS, FLOAT, ["batch", 1, config.vocab_size])
    for value, name in zip(presents, _present_names(config), strict=True):
        graph.output(value, name, FLOAT, _cache_shape(config))
    return graph.model()


def _present_names(config: TextConfig) -> list[str]:
    return [name for i in range(config.num_layers) for name in contract.present_names(i)]


def _cache_shape(config: TextConfig) -> list[int | str]:
    return ["batch", config.num_kv_heads, "capacity", config.head_dim]


def _shared_attention(graph: Graph, config: TextConfig) -> _Attention:
    seqlens_k = graph.input(contract.SEQLENS_K, INT32, ["batch"])
    total = graph.input(contract.TOTAL_SEQUENCE_LENGTH, INT32, [])
    cos, sin = rotary_tables(config)
    return _Attention(
        seqlens_k, total, graph.constant("rotary.cos", cos), graph.constant("rotary.sin", sin)
    )


def rotary_tables(config: TextConfig) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines, float32 [max_position_embeddings, head_dim / 2]."""
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / config.head_dim
    frequencies = (1.0 / config.rope_theta**exponents).astype(np.float32)
    positions = np.arange(config.max_position_embeddings, dtype=np.float32)
    angles = np.outer(positions, frequencies).astype(np.float32)
    return np.cos(angles), np.sin(angles)


def _embed(graph: Graph, config: TextConfig, ids: ir.Value) -> ir.Value:
    rows = graph.op.Gather(graph.stored("decoder.embed_tokens.weight"), ids, axis=0)
    return graph.op.Mul(graph.as_float(rows), math.sqrt(config.hidden_size))


def _block(
    graph: Graph, config: TextConfig, layer: int, x: ir.Value, shared: _Attention
) -> tuple[ir.Value, Sequence[ir.Value]]:
    """One pre-norm layer and its cache; the last layer goes on with the last position alone."""
    prefix = f"decoder.layers.{layer}"
    normed = _norm(graph, config, f"{prefix}.input_layernorm", x)
    attended, *present = _attention(graph, config, layer, normed, shared)
    if layer == config.num_layers - 1:
        x, attended = _last_position(graph, x), _last_position(graph, attended)
    x = graph.op.Add(x, graph.linear(attended, f"{prefix}.o_proj"))
    normed = _norm(graph, config, f"{prefix}.post_attention_layernorm", x)
    return graph.op.Add(x, _mlp(graph, prefix, normed)), present


def _attention(
    graph: Graph, config: TextConfig, layer: int, x: ir.Value, shared: _Attention
) -> Sequence[ir.Value]:
    """The attended values, then the keys and values that the cache holds afterwards."""
    names = [f"decoder.layers.{layer}.{part}_proj" for part in "qkv"]
    qkv = graph.linear(x, *names, into=f"decoder.layers.{layer}.qkv_proj")
    past = [graph.input(name, FLOAT, _cache_shape(config)) for name in contract.past_names(layer)]
    outputs: Sequence[ir.Value] = graph.contrib.GroupQueryAttention(
        qkv,
        None,
        None,
        *past,
        shared.seqlens_k,
        shared.total_sequence_length,
        shared.cos,
        shared.sin,
        num_heads=config.num_heads,
        kv_num_heads=config.num_kv_heads,
        scale=config.head_dim**-0.5,
        do_rotary=1,
        causal=0,
        _outputs=3,
    )
    return outputs


def _mlp(graph: Graph, prefix: str, x: ir.Value) -> ir.Value:
    gate = graph.op.Gelu(graph.linear(x, f"{prefix}.gate_proj"), approximate="tanh")
    return graph.linear(
        graph.op.Mul(gate, graph.linear(x, f"{prefix}.up_proj")), f"{prefix}.down_proj"
    )


def _logits(graph: Graph, config: TextConfig, x: ir.Value) -> ir.Value:
    """The head is the unscaled embedding table, stored once: `Gemm` reads it transposed."""
    x = graph.op.Squeeze(_norm(graph, config, "decoder.norm", x), [1])  # [batch, hidden]
    table = graph.weight("decoder.embed_tokens.weight")
    return graph.op.Unsqueeze(graph.op.Gemm(x, table, transB=1), [1])


def _last_position(graph: Graph, x: ir.Value) -> ir.Value:
    return graph.op.Slice(x, [-1], [np.iinfo(np.int64).max], [1])


def _norm(graph: Graph, config: TextConfig, name: str, x: ir.Value) -> ir.Value:
    """RMSNorm with the gain `1 + w`, added in float32: bfloat16 would lose bits of w."""
    weight = graph.tensors[f"{name}.weight"]
    gain = lazy(
        f"{name}.gain",
        lambda: weight.numpy().astype(np.float32) + np.float32(1),
        FLOAT,
        [config.hidden_size],
    )
    return graph.op.RMSNormalization(
        x, graph.initializer(f"{name}.gain", gain), axis=-1, epsilon=config.rms_norm_eps
    )
