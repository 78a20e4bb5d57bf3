"""Gemma or Gemma 2 as one graph for both phases: a prompt with its images, or one token a slot.

Knows the two ends, embedding and head. What lies between them is in `decoder_block`, and why one
graph is enough in `decoder_attention`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from paligemma_edge.export.checkpoint.text_config import SlidingWindow, TextConfig
from paligemma_edge.export.graphs.builder import FLOAT, INT64, Graph
from paligemma_edge.export.graphs.decoder_attention import SharedAttention, cache_shape
from paligemma_edge.export.graphs.decoder_block import block, norm
from paligemma_edge.runtime import contract


def build_decoder(
    config: TextConfig,
    tensors: Mapping[str, ir.TensorProtocol],
    *,
    sliding_window: SlidingWindow = "full",
) -> ir.Model:
    """The graph of contract.DECODER: ids, image features and cache in; logits and cache out.

    With `sliding_window` "hf" it only steps: tokens of an answer see the window of a Gemma 2
    config in its sliding layers, and `quantize.prefill.whole_prompt` makes the graph for prompts.
    """
    graph = Graph.create(contract.DECODER, tensors)
    ids = graph.input(contract.INPUT_IDS, INT64, ["batch", "text"])
    features = graph.input(contract.IMAGE_FEATURES, FLOAT, ["batch", "image", config.hidden_size])
    shared = SharedAttention.create(graph, config, sliding_window)
    x = graph.op.Concat(features, _embed(graph, config, ids), axis=1)
    presents: list[ir.Value] = []
    for layer in range(config.num_layers):
        x, present = block(graph, config, layer, x, shared)
        presents += present
    logits = _logits(graph, config, x)
    graph.output(logits, contract.LOGITS, FLOAT, ["batch", 1, config.vocab_size])
    for value, name in zip(presents, _present_names(config), strict=True):
        graph.output(value, name, FLOAT, cache_shape(config))
    return graph.model()


def _present_names(config: TextConfig) -> list[str]:
    return [name for i in range(config.num_layers) for name in contract.present_names(i)]


def _embed(graph: Graph, config: TextConfig, ids: ir.Value) -> ir.Value:
    rows = graph.op.Gather(graph.stored("decoder.embed_tokens.weight"), ids, axis=0)
    return graph.op.Mul(graph.as_float(rows), math.sqrt(config.hidden_size))


def _logits(graph: Graph, config: TextConfig, x: ir.Value) -> ir.Value:
    """The head is the unscaled embedding table, stored once: `Gemm` reads it transposed."""
    x = graph.op.Squeeze(norm(graph, config, "decoder.norm", x), [1])  # [batch, hidden]
    table = graph.weight("decoder.embed_tokens.weight")
    logits = graph.op.Gemm(x, table, transB=1)
    if config.gemma2 is not None and config.gemma2.final_softcap is not None:
        logits = _softcap(graph, logits, config.gemma2.final_softcap)
    return graph.op.Unsqueeze(logits, [1])


def _softcap(graph: Graph, x: ir.Value, bound: float) -> ir.Value:
    """Values within ±bound, in the same order."""
    limit = graph.constant("softcap", np.array(bound, np.float32))
    return graph.op.Mul(graph.op.Tanh(graph.op.Div(x, limit)), limit)
