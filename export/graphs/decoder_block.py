"""One layer of the decoder, Gemma's or Gemma 2's.

Gemma normalizes the input of attention and MLP, Gemma 2 also their output. The last layer keeps
only the last position.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from paligemma_edge.export.checkpoint.text_config import TextConfig
from paligemma_edge.export.graphs.builder import FLOAT, Graph, lazy
from paligemma_edge.export.graphs.decoder_attention import SharedAttention, attend


def block(
    graph: Graph, config: TextConfig, layer: int, x: ir.Value, shared: SharedAttention
) -> tuple[ir.Value, Sequence[ir.Value]]:
    """The residual stream after a layer, and the cache's new keys and values."""
    prefix = f"decoder.layers.{layer}"
    attended, *present = attend(
        graph, config, layer, norm(graph, config, f"{prefix}.input_layernorm", x), shared
    )
    if layer == config.num_layers - 1:
        x, attended = _last_position(graph, x), _last_position(graph, attended)
    added = graph.linear(attended, f"{prefix}.o_proj")
    finish = _after_attention if config.gemma2 is None else _after_attention_gemma2
    return finish(graph, config, prefix, x, added), present


def _after_attention(
    graph: Graph, config: TextConfig, prefix: str, x: ir.Value, added: ir.Value
) -> ir.Value:
    """In Gemma `post_attention_layernorm` normalizes the input of the MLP."""
    x = graph.op.Add(x, added)
    normed = norm(graph, config, f"{prefix}.post_attention_layernorm", x)
    return graph.op.Add(x, _mlp(graph, prefix, normed))


def _after_attention_gemma2(
    graph: Graph, config: TextConfig, prefix: str, x: ir.Value, added: ir.Value
) -> ir.Value:
    """In Gemma 2 `post_attention_layernorm` normalizes the output of attention."""
    x = graph.op.Add(x, norm(graph, config, f"{prefix}.post_attention_layernorm", added))
    normed = norm(graph, config, f"{prefix}.pre_feedforward_layernorm", x)
    added = _mlp(graph, prefix, normed)
    return graph.op.Add(x, norm(graph, config, f"{prefix}.post_feedforward_layernorm", added))


def norm(graph: Graph, config: TextConfig, name: str, x: ir.Value) -> ir.Value:
    """RMSNorm with the gain `1 + w`, computed in float32: bfloat16 would lose bits of w."""
    weight = graph.tensors[f"{name}.weight"]

    def one_more() -> NDArray[np.float32]:
        with np.errstate(invalid="ignore"):  # a weight that is NaN stays NaN, of whichever kind
            return weight.numpy().astype(np.float32) + np.float32(1)

    gain = lazy(f"{name}.gain", one_more, FLOAT, [config.hidden_size])
    return graph.op.RMSNormalization(
        x, graph.initializer(f"{name}.gain", gain), axis=-1, epsilon=config.rms_norm_eps
    )


def _mlp(graph: Graph, prefix: str, x: ir.Value) -> ir.Value:
    gate = graph.op.Gelu(graph.linear(x, f"{prefix}.gate_proj"), approximate="tanh")
    return graph.linear(
        graph.op.Mul(gate, graph.linear(x, f"{prefix}.up_proj")), f"{prefix}.down_proj"
    )


def _last_position(graph: Graph, x: ir.Value) -> ir.Value:
    return graph.op.Slice(x, [-1], [np.iinfo(np.int64).max], [1])
