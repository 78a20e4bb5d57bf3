"""Products of 8-bit integers: weights with a scale for each output, inputs with one for each token.

The fastest product that ONNX Runtime has on a CPU. Each token is divided by its largest value and
rounded to steps of 1/127, so that a large token does not spoil the others and no answer depends on
what it is computed beside. Inputs of 16 bits are two of 8: what the first rounding lost is rounded
again, 254 times finer, and both go through the same product as two tokens would. A step hardly
notices that, for it waits for the weights; a prefill takes twice as long.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from paligemma_edge.quantize.graphs.linear import Linear
from paligemma_edge.quantize.graphs.nodes import Nodes
from paligemma_edge.quantize.rounding.rounding import Rounded
from paligemma_edge.quantize.schemes.rewrite import Round, RoundedWeight, add_lazy, replace

_STEP = np.float32(1 / 127)
_FINER = np.float32(254)
_MIDDLE = np.uint8(128)
_TINY = np.float32(1e-30)  # a token of zeros stays one
_Weight: TypeAlias = tuple[ir.Value, ir.Value]  # codes and scales


def to_integer(model: ir.Model, layer: Linear, round_rows: Round, *, inputs: int) -> None:
    """Replace a layer's product; `round_rows` must round to 8 bits with one scale a row."""
    nodes, weight = Nodes(model, layer.name), _weights(model, layer, round_rows)
    largest = _largest(nodes, layer.input)
    even = nodes.add("Div", layer.input, largest)
    rounded = nodes.add("QuantizeLinear", even, *_grid(nodes))
    if inputs == 8:
        product = _product(nodes, rounded, weight)
    else:
        product = _product_of_both(nodes, even, rounded, weight)
    nodes.add("Mul", product, largest)
    replace(layer, nodes)


def ends(product: ir.Node) -> tuple[ir.Value, ir.Value]:
    """What a layer of `to_integer` reads and what it gives, by its MatMulIntegerToFloat."""
    node: ir.Node | None = product
    while node is not None and node.op_type != "Div":
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    assert node is not None, "a token is divided by its largest value first"
    x, largest = node.inputs
    assert x is not None and largest is not None
    back = next(use.node for use in largest.uses() if use.node.op_type == "Mul")
    return x, back.outputs[0]


def _grid(nodes: Nodes) -> tuple[ir.Value, ir.Value]:
    """The step between two codes of an input, and the code of zero: of all layers the same."""
    return (
        nodes.constant("integer.step", np.array(_STEP)),
        nodes.constant("integer.middle", np.array(_MIDDLE)),
    )


def _largest(nodes: Nodes, x: ir.Value) -> ir.Value:
    """The largest magnitude of each token, [..., 1], never zero."""
    last = nodes.constant("integer.last_axis", np.array([-1]))
    largest = nodes.add("ReduceMax", nodes.add("Abs", x), last, keepdims=1)
    return nodes.add("Max", largest, nodes.constant("integer.tiny", np.array(_TINY)))


def _product(nodes: Nodes, rounded: ir.Value, weight: _Weight) -> ir.Value:
    (codes, scales), (step, middle) = weight, _grid(nodes)
    operands = (rounded, codes, step, scales, middle)
    return nodes.add("MatMulIntegerToFloat", *operands, domain="com.microsoft")


def _product_of_both(nodes: Nodes, even: ir.Value, rounded: ir.Value, weight: _Weight) -> ir.Value:
    """The product of a coarse and a fine rounding, one after the other along the first axis."""
    finer = nodes.constant("integer.finer", np.array(_FINER))
    back = nodes.add("DequantizeLinear", rounded, *_grid(nodes))
    lost = nodes.add("Mul", nodes.add("Sub", even, back), finer)
    fine = nodes.add("QuantizeLinear", lost, *_grid(nodes))
    both = _product(nodes, nodes.add("Concat", rounded, fine, axis=0), weight)
    coarse, rest = nodes.add_many("Split", both, outputs=2, axis=0, num_outputs=2)
    return nodes.add("Add", coarse, nodes.add("Div", rest, finer))


def _weights(model: ir.Model, layer: Linear, round_rows: Round) -> _Weight:
    weight = RoundedWeight(layer, round_rows, _parts)
    codes = add_lazy(
        model,
        f"{layer.name}.codes",
        lambda: np.ascontiguousarray(weight.take("codes").T),
        ir.DataType.INT8,
        [layer.in_features, layer.out_features],
    )
    scales = add_lazy(
        model,
        f"{layer.name}.scales",
        lambda: weight.take("scales"),
        ir.DataType.FLOAT,
        [layer.out_features],
    )
    return codes, scales


def _parts(rounded: Rounded) -> dict[str, NDArray[np.generic]]:
    return {"codes": rounded.codes, "scales": rounded.scales[:, 0]}
