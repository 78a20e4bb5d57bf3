"""The products of a graph's layers, whatever they are computed with: where each begins and ends.

Knows the form that each scheme gives a layer, and what half precision makes of it. The head is
left out: nothing is added to it.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from paligemma_edge.quantize.graphs.linear import EMBEDDING, HEAD, WEIGHT, initializer, tensor_of
from paligemma_edge.quantize.schemes import integer
from paligemma_edge.quantize.schemes.half_plan import CODES

_OPERATORS = ("MatMul", "MatMulNBits", "MatMulIntegerToFloat")


@dataclass(frozen=True)
class Product:
    """One layer's `y = x @ W.T`, before a bias is added; y is in the dtype of x."""

    layer: str  # such as decoder.layers.0.qkv_proj
    x: ir.Value
    y: ir.Value
    in_features: int
    out_features: int
    dtype: ir.DataType


def products(model: ir.Model) -> list[Product]:
    """Those of a graph, in the order of the data."""
    nodes = (node for node in model.graph if node.op_type in _OPERATORS)
    return [product for node in nodes if (product := _product(node)) is not None]


def _product(node: ir.Node) -> Product | None:
    stored = initializer(node.inputs[1])
    if stored is None or not str(stored.name).endswith((WEIGHT, CODES)):
        return None
    layer = str(stored.name).removesuffix(WEIGHT).removesuffix(CODES)
    if layer in (HEAD, EMBEDDING):
        return None
    x, y = node.inputs[0], node.outputs[0]
    if node.op_type == "MatMulIntegerToFloat":
        x, y = integer.ends(node)
    assert x is not None
    return Product(layer, x, y, *_sizes(node, stored), _dtype(node))


def _sizes(node: ir.Node, stored: ir.Value) -> tuple[int, int]:
    """Width of x and of y."""
    if node.op_type == "MatMulNBits":
        return node.attributes["K"].as_int(), node.attributes["N"].as_int()
    inside, outside = tensor_of(stored).shape.numpy()
    return inside, outside


def _dtype(node: ir.Node) -> ir.DataType:
    """Of the stored weight, or of its scales: the graph has no dtype of most values."""
    read = node.inputs[{"MatMul": 1, "MatMulNBits": 2, "MatMulIntegerToFloat": 3}[node.op_type]]
    assert read is not None
    cast = read.producer()
    if cast is not None:
        return ir.DataType(cast.attributes["to"].as_int())
    return tensor_of(read).dtype
