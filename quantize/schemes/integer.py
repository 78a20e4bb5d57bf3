"""Products of 8-bit integers: weights with a scale for each output, inputs with one for each token.

The fastest product that ONNX Runtime has on a CPU. Each token is divided by its largest value and
rounded to steps of 1/127, so that a large token does not spoil the others and no answer depends on
what it is computed beside. Inputs of 16 bits are two of 8: what the first rounding lost is rounded
again, 254 times finer, and both go through the same product as two tokens would. A step hardly
notices that, for it waits for the weights; a prefill takes twice as long.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from paligemma_edge.quantize.graphs.constants import add_constant
from paligemma_edge.quantize.graphs.linear import Linear
from paligemma_edge.quantize.rounding.rounding import Rounded
from paligemma_edge.quantize.schemes.rewrite import Round, RoundedWeight, add_lazy, replace

_STEP = np.float32(1 / 127)
_FINER = np.float32(254)
_MIDDLE = np.uint8(128)
_TINY = np.float32(1e-30)  # a token of zeros stays one


def to_integer(model: ir.Model, layer: Linear, round_rows: Round, *, inputs: int) -> None:
    """Replace a layer's product; `round_rows` must round to 8 bits with one scale a row."""
    codes, scales = _weights(model, layer, round_rows)
    nodes = _Nodes(model)
    largest = nodes.largest(layer.input)
    even = nodes.add("Div", layer.input, largest)
    rounded = nodes.add("QuantizeLinear", even, nodes.step, nodes.middle)
    if inputs == 8:
        product = nodes.product(rounded, codes, scales)
    else:
        product = _product_of_both(nodes, even, rounded, codes, scales)
    nodes.add("Mul", product, largest)
    replace(model, layer, nodes.all)


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


class _Nodes:
    """Nodes in the making, and the constants that all layers share."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.all: list[ir.Node] = []
        self.step = add_constant(model, "integer.step", np.array(_STEP))
        self.middle = add_constant(model, "integer.middle", np.array(_MIDDLE))

    def add(self, op: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        self.all.append(ir.node(op, inputs, attributes=attributes))
        return self.all[-1].outputs[0]

    def constant(self, name: str, value: NDArray[np.generic]) -> ir.Value:
        return add_constant(self.model, f"integer.{name}", value)

    def largest(self, x: ir.Value) -> ir.Value:
        """The largest magnitude of each token, [..., 1], never zero."""
        last = self.constant("last_axis", np.array([-1]))
        found = self.add("ReduceMax", self.add("Abs", x), last, keepdims=1)
        return self.add("Max", found, self.constant("tiny", np.array(_TINY)))

    def product(self, rounded: ir.Value, codes: ir.Value, scales: ir.Value) -> ir.Value:
        operands = [rounded, codes, self.step, scales, self.middle]
        self.all.append(ir.node("MatMulIntegerToFloat", operands, domain="com.microsoft"))
        return self.all[-1].outputs[0]


def _product_of_both(
    nodes: _Nodes, even: ir.Value, rounded: ir.Value, codes: ir.Value, scales: ir.Value
) -> ir.Value:
    """The product of a coarse and a fine rounding, one after the other along the first axis."""
    finer = nodes.constant("finer", np.array(_FINER))
    back = nodes.add("DequantizeLinear", rounded, nodes.step, nodes.middle)
    lost = nodes.add("Mul", nodes.add("Sub", even, back), finer)
    fine = nodes.add("QuantizeLinear", lost, nodes.step, nodes.middle)
    both = nodes.product(nodes.add("Concat", rounded, fine, axis=0), codes, scales)
    split = ir.node("Split", [both], attributes={"axis": 0, "num_outputs": 2}, num_outputs=2)
    nodes.all.append(split)
    coarse, rest = split.outputs
    return nodes.add("Add", coarse, nodes.add("Div", rest, finer))


def _weights(model: ir.Model, layer: Linear, round_rows: Round) -> tuple[ir.Value, ir.Value]:
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
