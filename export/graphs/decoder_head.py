"""The tied LM head: last norm, logits by the embedding table, and Gemma 2's final softcap."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from paligemma_edge.export.checkpoint.tensor_names import EMBEDDING
from paligemma_edge.export.checkpoint.text_config import TextConfig
from paligemma_edge.export.graphs.builder import Graph
from paligemma_edge.export.graphs.decoder_block import norm


def head_logits(graph: Graph, config: TextConfig, x: ir.Value) -> ir.Value:
    """Logits [batch, 1, vocab] of `x` [batch, 1, hidden].

    The head is the unscaled embedding table, stored once: `Gemm` reads it transposed.
    """
    x = graph.op.Squeeze(norm(graph, config, "decoder.norm", x), [1])  # [batch, hidden]
    table = graph.weight(EMBEDDING)
    logits = graph.op.Gemm(x, table, transB=1)
    if config.gemma2 is not None and config.gemma2.final_softcap is not None:
        logits = _softcap(graph, logits, config.gemma2.final_softcap)
    return graph.op.Unsqueeze(logits, [1])


def _softcap(graph: Graph, x: ir.Value, bound: float) -> ir.Value:
    """bound * tanh(x / bound): values within ±bound, in the same order."""
    limit = graph.constant("softcap", np.array(bound, np.float32))
    return graph.op.Mul(graph.op.Tanh(graph.op.Div(x, limit)), limit)
