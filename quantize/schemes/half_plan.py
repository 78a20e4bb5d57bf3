"""Which values of a float32 graph are to be in half precision, and which stay in float32.

One rule for float16 and bfloat16: what multiplies by a weight or attends is in half precision,
operands and result; what adds up is in float32: the residual stream, the norms and the scaled
embedding. In between, a value is as exact as the most exact one that it is made from.

The stream is where float16 would overflow and where bfloat16 would lose a layer's small addition
to a large sum. Each layer pays with four casts, which are small beside the weights that it reads.
Attention has to be in half precision: CUDA has GroupQueryAttention in no other, rotary tables
included, which the original rounds likewise.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import onnx_ir as ir

from paligemma_edge.quantize.graphs.linear import WEIGHT, initializer, linears, tensor_of
from paligemma_edge.runtime import contract

FLOAT = ir.DataType.FLOAT
BIAS = ".bias"
CODES = ".codes"

# Inputs and outputs that are float32 in every variant.
ALWAYS_FLOAT = (
    *(contract.PIXEL_VALUES, contract.LOGITS),
    *(contract.NEXT_LOG_PROB, contract.PICKED, contract.TOP_LOGITS),
)

_FLOATS = (FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_PASS_ON = (
    *("Concat", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"),
    *("Gelu", "MultiHeadAttention"),
)
_IN_HALF = ("Gather", "GroupQueryAttention")
_INTEGERS = (("Shape", 0), ("TopK", 1))  # outputs that are int64


@dataclass(frozen=True)
class HalfPlan:
    """The dtype that each node computes in, and the dtype of each float that is no weight.

    `integers` are int64 results, `layers` the names of the layers by their node.
    """

    nodes: dict[ir.Node, ir.DataType]
    values: dict[ir.Value, ir.DataType]
    integers: list[ir.Value]
    layers: dict[ir.Node, str]


def plan_half(model: ir.Model, dtype: ir.DataType, *, keep_float: Collection[str]) -> HalfPlan:
    """Plan `dtype`; layers of `keep_float` read, compute and answer in float32 all the same."""
    plan = HalfPlan({}, {}, [], layer_names(model))
    for value in model.graph.inputs:
        if value.dtype == FLOAT:
            plan.values[value] = FLOAT if value.name in ALWAYS_FLOAT else dtype
    for node in model.graph:
        plan.nodes[node] = _node_dtype(plan, node, dtype, keep_float)
        for place, output in enumerate(node.outputs):
            if (node.op_type, place) in _INTEGERS:
                plan.integers.append(output)
            elif output.dtype in (None, *_FLOATS):
                plan.values[output] = plan.nodes[node]
    return plan


def layer_names(model: ir.Model) -> dict[ir.Node, str]:
    """The layers that have weights, whether linear, rounded to codes or a convolution."""
    names = {layer.node: layer.name for layer in linears(model)}
    for node in model.graph:
        weight = initializer(node.inputs[1]) if len(node.inputs) > 1 else None
        if weight is not None and weight.name and node.op_type in ("MatMulNBits", "Conv"):
            names[node] = weight.name.removesuffix(CODES).removesuffix(WEIGHT)
    return names


def is_float(value: ir.Value | None) -> bool:
    """Whether an initializer or an input is of one of the float dtypes."""
    return value is not None and value.dtype in _FLOATS


def passes_on(node: ir.Node) -> bool:
    """Whether a node's result is as exact as what it reads: it has no weight but a bias."""
    stored = [initializer(value) for value in node.inputs]
    if node.op_type == "Add":
        return any(value is not None and str(value.name).endswith(BIAS) for value in stored)
    if node.op_type == "Mul":
        return not any(stored)
    return node.op_type in _PASS_ON


def _node_dtype(
    plan: HalfPlan, node: ir.Node, dtype: ir.DataType, keep_float: Collection[str]
) -> ir.DataType:
    if node in plan.layers:
        return FLOAT if plan.layers[node] in keep_float else dtype
    if node.op_type == "Cast":
        return ir.DataType(node.attributes["to"].as_int())
    if passes_on(node):
        read = {plan.values[v] for v in node.inputs if v in plan.values and not initializer(v)}
        return FLOAT if FLOAT in read else dtype
    table = initializer(node.inputs[0]) if node.inputs else None
    integers = table is not None and tensor_of(table).dtype not in _FLOATS
    return dtype if node.op_type in _IN_HALF and not integers else FLOAT
