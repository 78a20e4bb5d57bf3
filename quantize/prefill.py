"""A graph that only reads prompts: the decoder's cut down to keys and values.

The decoder reads a prompt's last token again, so this graph needs no logits, and of the last
block nothing but its keys and values.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from paligemma_edge.quantize.linear import WEIGHT, linears
from paligemma_edge.runtime import contract

PREFIX = "prefill."


def prefill_of(decoder: ir.Model) -> ir.Model:
    """A copy of a decoder without logits; its layers are called prefill.layers.0.qkv_proj etc."""
    model = decoder.clone()
    graph = model.graph
    graph.name = contract.PREFILL
    logits = next(value for value in graph.outputs if value.name == contract.LOGITS)
    graph.outputs.remove(logits)
    RemoveUnusedNodesPass()(model)
    for layer in linears(model):
        for value in (layer.weight, layer.bias):
            if value is not None and value.name:
                value.name = value.name.replace("decoder.", PREFIX, 1)
        assert layer.weight.name == layer.name.replace("decoder.", PREFIX, 1) + WEIGHT
    return model
