"""The linear layers of a graph: where they are, and how they are changed.

Knows how the exporter writes a layer: `MatMul` with a weight [in, out] and perhaps a bias, or
`Gemm` with the table [out, in] of the LM head; a weight that is not float32 passes a `Cast`.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from paligemma_edge.quantize.graphs.derived_weights import DerivedMatrix, RowChange

WEIGHT = ".weight"
HEAD = "decoder.lm_head"
EMBEDDING = "decoder.embed_tokens"


@dataclass(frozen=True)
class Linear:
    """One layer `y = x @ W.T + b`, with W as [out, in]."""

    name: str  # such as decoder.layers.0.qkv_proj
    node: ir.Node  # MatMul or Gemm
    weight: ir.Value  # the initializer
    columns_first: bool  # whether it is stored as [in, out]
    bias: ir.Value | None  # the initializer

    @property
    def tensor(self) -> ir.TensorProtocol:
        """The weight as the graph stores it."""
        return tensor_of(self.weight)

    @property
    def in_features(self) -> int:
        """Width of x."""
        return int(self.tensor.shape.numpy()[0 if self.columns_first else 1])

    @property
    def out_features(self) -> int:
        """Width of y."""
        return int(self.tensor.shape.numpy()[1 if self.columns_first else 0])

    @property
    def input(self) -> ir.Value:
        """x."""
        value = self.node.inputs[0]
        assert value is not None
        return value

    def change(self, change: RowChange) -> None:
        """Let the weight be another one from now on; see DerivedMatrix."""
        derived = DerivedMatrix(self.tensor, change, columns_first=self.columns_first)
        set_float(self.weight, derived)


def linears(model: ir.Model) -> list[Linear]:
    """The linear layers of a graph, in the order of the data."""
    return [layer for node in model.graph if (layer := _linear(node)) is not None]


def untie_head(model: ir.Model) -> None:
    """Give the LM head a weight of its own, so that the two can be changed apart."""
    for layer in linears(model):
        if layer.node.op_type == "Gemm" and layer.name == EMBEDDING:
            table = layer.tensor
            head = ir.Value(
                name=HEAD + WEIGHT,
                type=ir.TensorType(table.dtype),
                shape=ir.Shape(table.shape.numpy()),
                const_value=table,
            )
            model.graph.register_initializer(head)
            _read_instead(model, layer.node, head)


def tensor_of(value: ir.Value) -> ir.TensorProtocol:
    """The tensor of an initializer."""
    assert value.const_value is not None, f"initializer {value.name} has no tensor"
    return value.const_value


def set_float(value: ir.Value, tensor: ir.TensorProtocol) -> None:
    """Give an initializer a float32 tensor; a `Cast` of it to float32 is removed."""
    value.const_value = tensor
    value.type = ir.TensorType(ir.DataType.FLOAT)
    for user in [use.node for use in value.uses()]:
        if user.op_type == "Cast":
            _remove(user, value)


def initializer(value: ir.Value | None) -> ir.Value | None:
    """The initializer that an operand reads, whether or not through a `Cast`."""
    if value is None:
        return None
    producer = value.producer()
    if producer is not None and producer.op_type == "Cast":
        value = producer.inputs[0]
    return value if value is not None and value.is_initializer() else None


def _remove(node: ir.Node, instead: ir.Value) -> None:
    ir.convenience.replace_all_uses_with(node.outputs[0], instead)
    graph = node.graph
    assert graph is not None
    graph.remove(node, safe=True)


def _linear(node: ir.Node) -> Linear | None:
    if node.domain not in ("", "ai.onnx") or node.op_type not in ("MatMul", "Gemm"):
        return None
    weight = initializer(node.inputs[1])
    if weight is None or weight.name is None or not weight.name.endswith(WEIGHT):
        return None
    name = weight.name.removesuffix(WEIGHT)
    columns_first = node.op_type == "MatMul"
    return Linear(name, node, weight, columns_first, _bias(node, name))


def _bias(node: ir.Node, name: str) -> ir.Value | None:
    for user in [use.node for use in node.outputs[0].uses()]:
        operands = user.inputs if user.op_type == "Add" else ()
        for value in map(initializer, operands):
            if value is not None and value.name == f"{name}.bias":
                return value
    return None


def _read_instead(model: ir.Model, node: ir.Node, weight: ir.Value) -> None:
    operand = weight
    if tensor_of(weight).dtype != ir.DataType.FLOAT:
        cast = ir.node("Cast", [weight], attributes={"to": ir.DataType.FLOAT})
        model.graph.insert_before(node, cast)
        operand = cast.outputs[0]
    before = node.inputs[1]
    node.replace_input_with(1, operand)
    cast_before = before.producer() if before is not None else None
    if cast_before is not None and not cast_before.outputs[0].uses():
        # Left as it is, it would cast the whole table in every step.
        model.graph.remove(cast_before, safe=True)
