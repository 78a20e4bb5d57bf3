"""Graphs that only read prompts, made from the decoder.

Where a recipe reads prompts by other products, the graph is cut down to keys and values: the
decoder reads a prompt's last token again, so no logits are needed, and of the last block nothing
but its keys and values. Where the decoder's layers see windows, it cannot read that token, for a
prompt sees itself whole: then the graph keeps its logits.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from paligemma_edge.quantize.graphs.linear import EMBEDDING, HEAD, WEIGHT, linears
from paligemma_edge.runtime import contract

PREFIX = "prefill."
WINDOW = "local_window_size"


def prefill_of(decoder: ir.Model) -> ir.Model:
    """A decoder's copy for prompts; its layers are called prefill.layers.0.qkv_proj etc."""
    model = whole_prompt(decoder)
    if not has_windows(decoder):
        graph = model.graph
        logits = next(value for value in graph.outputs if value.name == contract.LOGITS)
        graph.outputs.remove(logits)
        RemoveUnusedNodesPass()(model)
    for layer in linears(model):
        if layer.name in (HEAD, EMBEDDING):  # as in the decoder, for the same candidates
            continue
        for value in (layer.weight, layer.bias):
            if value is not None and value.name:
                value.name = value.name.replace("decoder.", PREFIX, 1)
        assert layer.weight.name == layer.name.replace("decoder.", PREFIX, 1) + WEIGHT
    return model


def whole_prompt(decoder: ir.Model) -> ir.Model:
    """A decoder's copy whose layers see everything, with the same weights and names."""
    model = decoder.clone()
    model.graph.name = contract.PREFILL
    for node in model.graph:
        if node.attributes.pop(WINDOW, None) is not None:
            node.attributes.add(ir.AttrInt64("causal", 0))
    return model


def has_windows(decoder: ir.Model) -> bool:
    """Whether some layers of a decoder attend to the last keys only."""
    return any(WINDOW in node.attributes for node in decoder.graph)
