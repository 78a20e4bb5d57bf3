"""Rotates what flows through the decoder, so that no channel stands out. The function stays.

Two rotations, both folded into the weights: one of the residual stream, which pre-norm blocks
allow once the gains are folded (an RMS norm does not see a rotation), and one of each head's
values. Only where the stream begins does the graph itself rotate it, by two small products, so
that the embedding table stays as it is stored. Where what a layer adds is normalized, as in
Gemma 2, each channel of it has a gain of its own, so that the stream cannot be rotated.
(QuaRot, https://arxiv.org/abs/2404.00456, sections 4.1 and 4.2.)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from paligemma_edge.quantize.graphs.linear import Linear, linears
from paligemma_edge.quantize.graphs.nodes import Nodes
from paligemma_edge.quantize.transforms.changes import RotatedInputs, RotatedOutputs
from paligemma_edge.quantize.transforms.fold import float_of
from paligemma_edge.quantize.transforms.rotation import Rotation

_WRITERS = (".o_proj", ".down_proj")


def rotate_decoder(model: ir.Model) -> Rotation | None:
    """Rotate the values of a decoder whose gains are folded, and its residual stream if it can be.

    Returns the rotation of the stream, None where it stays as it is.
    """
    layers = linears(model)
    writers = [layer for layer in layers if layer.name.endswith(_WRITERS)]
    rotation = None
    if all(map(_adds_to_stream, writers)):
        _require_folded(model)
        rotation = Rotation.of_size(writers[0].out_features)
        _rotate_stream(model, layers, rotation)
    _rotate_values(model, {layer.name: layer for layer in layers})
    return rotation


def _adds_to_stream(writer: Linear) -> bool:
    """Whether nothing stands between a layer and the stream."""
    return all(use.node.op_type == "Add" for use in writer.node.outputs[0].uses())


def _require_folded(model: ir.Model) -> None:
    for node in model.graph:
        if node.op_type == "RMSNormalization":
            assert np.all(float_of(node.inputs[1]) == 1), "gains are folded before a rotation"


def _rotate_stream(model: ir.Model, layers: Sequence[Linear], rotation: Rotation) -> None:
    """What reads and writes the stream; and its begin, where features and tokens meet."""
    for layer in layers:
        if layer.name.endswith(_WRITERS):
            layer.change(RotatedOutputs(rotation))
        else:
            layer.change(RotatedInputs(rotation))
    start = next(node for node in model.graph if node.op_type == "Concat").outputs[0]
    users = [(use.node, use.idx) for use in start.uses()]
    nodes = Nodes(model, "rotation")
    rotated = add_rotation(nodes, start, rotation)
    nodes.insert_before(users[0][0])
    for user, index in users:
        user.replace_input_with(index, rotated)


def add_rotation(nodes: Nodes, x: ir.Value, rotation: Rotation, *, back: bool = False) -> ir.Value:
    """Rotate `x` [batch, tokens, size], or rotate it back: two small products."""
    left, right = (rotation.left.T, rotation.right.T) if back else (rotation.left, rotation.right)
    name = "rotation.back" if back else "rotation"
    split = nodes.constant("rotation.split", np.array([0, 0, len(left), len(right)]))
    joined = nodes.constant("rotation.join", np.array([0, 0, rotation.size]))
    rows = nodes.constant(f"{name}.left", np.ascontiguousarray(left.T))
    columns = nodes.constant(f"{name}.right", np.ascontiguousarray(right))
    once = nodes.add("MatMul", nodes.add("Reshape", x, split), columns)
    return nodes.add("Reshape", nodes.add("MatMul", rows, once), joined)


def _rotate_values(model: ir.Model, layers: dict[str, Linear]) -> None:
    """Each head's values by one rotation, undone where the output projection reads them."""
    for node in model.graph:
        if node.op_type == "GroupQueryAttention":
            _rotate_heads(node, layers)


def _rotate_heads(attention: ir.Node, layers: dict[str, Linear]) -> None:
    heads, kv_heads = (attention.attributes[k].as_int() for k in ("num_heads", "kv_num_heads"))
    product = attention.inputs[0]
    assert product is not None
    qkv = next(x for x in layers.values() if x.node is product.producer())
    out = layers[qkv.name.replace(".qkv_proj", ".o_proj")]
    rotation = Rotation.of_size(out.in_features // heads)
    first = (heads + kv_heads) * rotation.size
    qkv.change(RotatedOutputs(rotation, first))  # of q, k and v the rows of v, head by head
    out.change(RotatedInputs(rotation))
