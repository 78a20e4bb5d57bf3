"""SigLIP as a graph: pixels in, one vector per patch out.

Patch embedding, learned positions, pre-norm blocks with full attention, a last norm
(transformers, models/siglip/modeling_siglip.py).
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from paligemma_edge.export.checkpoint.config import VisionConfig
from paligemma_edge.export.graphs.builder import FLOAT, Graph
from paligemma_edge.runtime import contract


def build_vision_encoder(
    config: VisionConfig, tensors: Mapping[str, ir.TensorProtocol]
) -> ir.Model:
    """`pixel_values` float [batch, 3, R, R] → `last_hidden_state` float [batch, N, hidden]."""
    graph = Graph.create(contract.VISION_ENCODER, tensors)
    side = config.image_size
    pixels = graph.input(contract.PIXEL_VALUES, FLOAT, ["batch", 3, side, side])
    x = _embed_patches(graph, config, pixels)
    for layer in range(config.num_layers):
        x = _block(graph, config, f"vision.layers.{layer}", x)
    x = _norm(graph, config, "vision.post_layernorm", x)
    shape = ("batch", config.image_tokens, config.hidden_size)
    graph.output(x, contract.LAST_HIDDEN_STATE, FLOAT, shape)
    return graph.model()


def _embed_patches(graph: Graph, config: VisionConfig, pixels: ir.Value) -> ir.Value:
    op, patch = graph.op, config.patch_size
    patches = op.Conv(
        pixels,
        graph.weight("vision.patch_embedding.weight"),
        graph.weight("vision.patch_embedding.bias"),
        kernel_shape=[patch, patch],
        strides=[patch, patch],
    )  # [batch, hidden, rows, columns]
    rows = op.Reshape(patches, [0, config.hidden_size, config.image_tokens])
    return op.Add(
        op.Transpose(rows, perm=[0, 2, 1]), graph.weight("vision.position_embedding.weight")
    )


def _block(graph: Graph, config: VisionConfig, prefix: str, x: ir.Value) -> ir.Value:
    op = graph.op
    x = op.Add(
        x, _attention(graph, config, prefix, _norm(graph, config, f"{prefix}.layer_norm1", x))
    )
    hidden = graph.linear(
        _norm(graph, config, f"{prefix}.layer_norm2", x), f"{prefix}.fc1", bias=True
    )
    hidden = op.Gelu(hidden, approximate="tanh")
    return op.Add(x, graph.linear(hidden, f"{prefix}.fc2", bias=True))


def _attention(graph: Graph, config: VisionConfig, prefix: str, x: ir.Value) -> ir.Value:
    names = [f"{prefix}.{part}_proj" for part in "qkv"]
    qkv = graph.linear(x, *names, bias=True, into=f"{prefix}.qkv_proj")
    query, key, value = graph.op.Split(qkv, num_outputs=3, axis=-1, _outputs=3)
    attended = graph.contrib.MultiHeadAttention(query, key, value, num_heads=config.num_heads)
    return graph.linear(attended, f"{prefix}.out_proj", bias=True)


def _norm(graph: Graph, config: VisionConfig, name: str, x: ir.Value) -> ir.Value:
    return graph.op.LayerNormalization(
        x,
        graph.weight(f"{name}.weight"),
        graph.weight(f"{name}.bias"),
        axis=-1,
        epsilon=config.layer_norm_eps,
    )
