"""The mask VQ-VAE's decoder as a graph: 16 segmentation codes in, a 64×64 mask out.

The architecture is that of `vae-oid.npz`
(big_vision, evaluators/proj/paligemma/transfers/segmentation.py).
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from paligemma_edge.export.checkpoint.mask_decoder_weights import CODEBOOK, RESIDUAL_BLOCKS
from paligemma_edge.export.graphs.builder import FLOAT, INT64, Graph
from paligemma_edge.runtime import contract

_UPSAMPLINGS = ("decoder.4", "decoder.6", "decoder.8", "decoder.10")


def build_mask_decoder(tensors: Mapping[str, ir.TensorProtocol]) -> ir.Model:
    """`segmentation_codes` int64 [batch, 16] → `mask` float [batch, 64, 64], about -1..1."""
    graph = Graph.create(contract.MASK_DECODER, tensors)
    op = graph.op
    codes = graph.input(contract.SEGMENTATION_CODES, INT64, ["batch", contract.CODES_PER_MASK])
    x = graph.as_float(op.Gather(graph.stored(CODEBOOK), codes, axis=0))  # [batch, 16, 512]
    x = op.Transpose(op.Reshape(x, [0, 4, 4, 512]), perm=[0, 3, 1, 2])
    x = op.Relu(_conv(graph, "decoder.0", x, padding=0))
    for name in RESIDUAL_BLOCKS:
        x = op.Add(x, _residual(graph, name, x))
    for name in _UPSAMPLINGS:
        x = op.Relu(_double(graph, name, x))
    mask = op.Squeeze(_conv(graph, "decoder.12", x, padding=0), [1])
    graph.output(mask, contract.MASK, FLOAT, ["batch", 64, 64])
    return graph.model()


def _residual(graph: Graph, name: str, x: ir.Value) -> ir.Value:
    x = graph.op.Relu(_conv(graph, f"{name}.net.0", x, padding=1))
    x = graph.op.Relu(_conv(graph, f"{name}.net.2", x, padding=1))
    return _conv(graph, f"{name}.net.4", x, padding=0)


def _conv(graph: Graph, name: str, x: ir.Value, *, padding: int) -> ir.Value:
    weight, bias = graph.weight(f"{name}.weight"), graph.weight(f"{name}.bias")
    return graph.op.Conv(x, weight, bias, pads=[padding] * 4)


def _double(graph: Graph, name: str, x: ir.Value) -> ir.Value:
    weight, bias = graph.weight(f"{name}.weight"), graph.weight(f"{name}.bias")
    return graph.op.ConvTranspose(x, weight, bias, strides=[2, 2], pads=[1] * 4)
