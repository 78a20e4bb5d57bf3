"""Gemma or Gemma 2 as one graph for both phases: a prompt with its images, or one token a slot.

Knows inputs, outputs and the embedding. The layers are in `decoder_block`, the tied head in
`decoder_head`; `decoder_attention` says why one graph is enough.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import onnx_ir as ir

from paligemma_edge.export.checkpoint.tensor_names import EMBEDDING
from paligemma_edge.export.checkpoint.text_config import SlidingWindow, TextConfig
from paligemma_edge.export.graphs.builder import FLOAT, INT64, Graph
from paligemma_edge.export.graphs.decoder_attention import SharedAttention, cache_shape
from paligemma_edge.export.graphs.decoder_block import block
from paligemma_edge.export.graphs.decoder_head import head_logits
from paligemma_edge.runtime import contract


def build_decoder(
    config: TextConfig,
    tensors: Mapping[str, ir.TensorProtocol],
    *,
    sliding_window: SlidingWindow = "full",
) -> ir.Model:
    """The graph of contract.DECODER: ids, image features and cache in; logits and cache out.

    With `sliding_window` "hf" the graph is for single steps only: in the sliding layers of a
    Gemma 2 a token attends to the window, and `quantize.graphs.prefill.whole_prompt` makes
    the graph for prompts.
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
    logits = head_logits(graph, config, x)
    graph.output(logits, contract.LOGITS, FLOAT, ["batch", 1, config.vocab_size])
    for value, name in zip(presents, _present_names(config), strict=True):
        graph.output(value, name, FLOAT, cache_shape(config))
    return graph.model()


def _present_names(config: TextConfig) -> list[str]:
    return [name for i in range(config.num_layers) for name in contract.present_names(i)]


def _embed(graph: Graph, config: TextConfig, ids: ir.Value) -> ir.Value:
    rows = graph.op.Gather(graph.stored(EMBEDDING), ids, axis=0)
    return graph.op.Mul(graph.as_float(rows), math.sqrt(config.hidden_size))
