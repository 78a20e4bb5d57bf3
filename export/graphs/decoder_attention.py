"""Attention of one decoder layer: keys and values go into the cache, queries attend to all of it.

No mask: a PaliGemma prompt sees itself whole, and a step sees everything before it, so
`GroupQueryAttention` with `causal=0` is exact in both phases. Rotary positions are 0-based;
only their differences matter (transformers counts from 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from paligemma_edge.export.checkpoint.text_config import SlidingWindow, TextConfig
from paligemma_edge.export.graphs.builder import FLOAT, INT32, Graph
from paligemma_edge.export.graphs.rotary import rotary_tables
from paligemma_edge.runtime import contract


@dataclass(frozen=True)
class SharedAttention:
    """Inputs and tables that the attention of all layers shares."""

    seqlens_k: ir.Value
    total_sequence_length: ir.Value
    cos: ir.Value
    sin: ir.Value
    sliding_window: SlidingWindow

    @classmethod
    def create(
        cls, graph: Graph, config: TextConfig, sliding_window: SlidingWindow
    ) -> SharedAttention:
        """Add the inputs and the tables to a graph."""
        seqlens_k = graph.input(contract.SEQLENS_K, INT32, ["batch"])
        total = graph.input(contract.TOTAL_SEQUENCE_LENGTH, INT32, [])
        tables = zip(("rotary.cos", "rotary.sin"), rotary_tables(config), strict=True)
        cos, sin = (graph.constant(name, table) for name, table in tables)
        return cls(seqlens_k, total, cos, sin, sliding_window)


def attend(
    graph: Graph, config: TextConfig, layer: int, x: ir.Value, shared: SharedAttention
) -> Sequence[ir.Value]:
    """The attended values, then the keys and values that the cache holds afterwards."""
    names = [f"decoder.layers.{layer}.{part}_proj" for part in "qkv"]
    qkv = graph.linear(x, *names, into=f"decoder.layers.{layer}.qkv_proj")
    past = [graph.input(name, FLOAT, cache_shape(config)) for name in contract.past_names(layer)]
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
        do_rotary=1,
        **_score_attributes(config),
        **_mask_attributes(config, layer, shared.sliding_window),
        _outputs=3,
    )
    return outputs


def cache_shape(config: TextConfig) -> list[int | str]:
    """The shape of a layer's keys, and of its values."""
    return ["batch", config.num_kv_heads, "capacity", config.head_dim]


def _score_attributes(config: TextConfig) -> dict[str, float]:
    """Scale of the scores, and Gemma 2's softcap."""
    if config.gemma2 is None:
        return {"scale": config.head_dim**-0.5}
    scale = {"scale": config.gemma2.query_pre_attn_scalar**-0.5}
    softcap = config.gemma2.attn_softcap
    return scale if softcap is None else {**scale, "softcap": softcap}


def _mask_attributes(
    config: TextConfig, layer: int, sliding_window: SlidingWindow
) -> dict[str, int]:
    """All keys; or, in a sliding layer of a graph for single steps, only the last ones.

    ONNX Runtime has windows only in causal attention, which for one token is the same.
    """
    gemma2 = config.gemma2
    if sliding_window == "full" or gemma2 is None or not gemma2.sliding_layers[layer]:
        return {"causal": 0}
    assert gemma2.sliding_window is not None, "checked before: a checkpoint with a window"
    return {"causal": 1, "local_window_size": gemma2.sliding_window}
