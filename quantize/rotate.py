"""Rotates what flows through the decoder, so that no channel stands out. The function stays.

Two rotations, both folded into the weights: one of the residual stream, which pre-norm blocks
allow once the gains are folded (an RMS norm does not see a rotation), and one of each head's
values. Only the image features, which come from outside, are turned by the graph itself: two
small products in a prefill, nothing in a step.
(QuaRot, https://arxiv.org/abs/2404.00456, sections 4.1 and 4.2.)
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from paligemma_edge.quantize.derived import DerivedMatrix, Float
from paligemma_edge.quantize.fold import float_of
from paligemma_edge.quantize.linear import (
    EMBEDDING,
    WEIGHT,
    Linear,
    gathered_as_float,
    linears,
    set_float,
    tensor_of,
)
from paligemma_edge.quantize.rotation import Rotation, rotate_columns
from paligemma_edge.runtime import contract

_WRITERS = (".o_proj", ".down_proj")


def rotate_decoder(model: ir.Model) -> None:
    """Rotate the residual stream and the values of a decoder whose gains are folded."""
    _require_folded(model)
    layers = linears(model)
    writers = [layer for layer in layers if layer.name.endswith(_WRITERS)]
    rotation = Rotation.of_size(writers[0].out_features)
    for layer in layers:
        if layer.name.endswith(_WRITERS):
            layer.change(lambda rows, _: rotate_columns(rotation, rows), whole=True)
        else:
            layer.change(lambda rows, _: rotation.apply(rows))
    _rotate_embedding(model, rotation)
    _rotate_features(model, rotation)
    _rotate_values(model, {layer.name: layer for layer in layers})


def _require_folded(model: ir.Model) -> None:
    for node in model.graph:
        if node.op_type == "RMSNormalization":
            assert np.all(float_of(node.inputs[1]) == 1), "gains are folded before a rotation"


def _rotate_embedding(model: ir.Model, rotation: Rotation) -> None:
    table = model.graph.initializers[EMBEDDING + WEIGHT]
    turned = DerivedMatrix(
        tensor_of(table), lambda rows, _: rotation.apply(rows), columns_first=False
    )
    set_float(table, turned)
    for gather in [use.node for use in table.uses()]:
        gathered_as_float(gather)


def _rotate_features(model: ir.Model, rotation: Rotation) -> None:
    """`left.T @ x @ right` on [batch, image, a, b], in front of whatever reads the features."""
    features = next(v for v in model.graph.inputs if v.name == contract.IMAGE_FEATURES)
    users = [(use.node, use.idx) for use in features.uses()]
    a, b = len(rotation.left), len(rotation.right)
    steps = [
        ("Reshape", _constant(model, "rotation.split", np.array([0, 0, a, b]))),
        ("MatMul", _constant(model, "rotation.right", rotation.right)),
    ]
    value: ir.Value = features
    nodes = []
    for op, operand in steps:
        nodes.append(ir.node(op, [value, operand]))
        value = nodes[-1].outputs[0]
    left = _constant(model, "rotation.left", np.ascontiguousarray(rotation.left.T))
    nodes.append(ir.node("MatMul", [left, value]))
    joined = _constant(model, "rotation.join", np.array([0, 0, a * b]))
    nodes.append(ir.node("Reshape", [nodes[-1].outputs[0], joined]))
    for node in nodes:
        _name(node)
    model.graph.insert_before(users[0][0], nodes)
    for user, index in users:
        user.replace_input_with(index, nodes[-1].outputs[0])


def _constant(model: ir.Model, name: str, array: np.ndarray) -> ir.Value:
    value = ir.Value(
        name=name,
        type=ir.TensorType(ir.tensor(array).dtype),
        shape=ir.Shape(array.shape),
        const_value=ir.tensor(array, name=name),
    )
    model.graph.register_initializer(value)
    return value


def _name(node: ir.Node) -> None:
    output = node.outputs[0]
    if output.name is None:
        output.name = f"rotation.{node.op_type}.{id(node)}"


def _rotate_values(model: ir.Model, layers: dict[str, Linear]) -> None:
    """Each head's values by one rotation, undone where the output projection reads them."""
    for node in model.graph:
        if node.op_type != "GroupQueryAttention":
            continue
        heads, kv_heads = (node.attributes[k].as_int() for k in ("num_heads", "kv_num_heads"))
        qkv_weight = node.inputs[0]
        assert qkv_weight is not None
        qkv = next(x for x in layers.values() if x.node is qkv_weight.producer())
        out = layers[qkv.name.replace(".qkv_proj", ".o_proj")]
        rotation = Rotation.of_size(out.in_features // heads)
        first = (heads + kv_heads) * rotation.size
        qkv.change(lambda rows, _, r=rotation, n=first: _turn_values(r, rows, n), whole=True)
        out.change(lambda rows, _, r=rotation: _turn_heads(r, rows))


def _turn_values(rotation: Rotation, matrix: Float, first: int) -> Float:
    """`matrix` [q + k + v, in]: the rows of v, head by head."""
    for start in range(first, len(matrix), rotation.size):
        head = slice(start, start + rotation.size)
        matrix[head] = rotate_columns(rotation, matrix[head])
    return matrix


def _turn_heads(rotation: Rotation, rows: Float) -> Float:
    """`rows` [out, heads * head_dim], head by head."""
    return rotation.apply(rows.reshape(-1, rotation.size)).reshape(rows.shape)
