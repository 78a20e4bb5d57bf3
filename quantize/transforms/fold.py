"""The gain of a norm, folded into the layers that read it. The function stays the same.

`(n * g) W.T = n (W * g).T`, and a LayerNorm's shift becomes a bias. Channels whose gain was set
high and whose weights were set low, or the reverse, come back to a common measure; and a stream
of values without gains can be rotated.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from paligemma_edge.quantize.graphs.check_finite import compute_finite
from paligemma_edge.quantize.graphs.derived_weights import Float, lazy_array, row_chunks
from paligemma_edge.quantize.graphs.linear import Linear, initializer, linears, set_float, tensor_of
from paligemma_edge.quantize.transforms.changes import ScaledInputs

NORMS = ("RMSNormalization", "LayerNormalization")


def fold_gains(model: ir.Model) -> None:
    """Fold every norm that only linear layers read; each of them must have a bias for a shift."""
    layers = {id(layer.node): layer for layer in linears(model)}
    for node in list(model.graph):
        if node.op_type not in NORMS:
            continue
        readers = norm_readers(node, layers)
        if readers and (len(node.inputs) < 3 or all(reader.bias for reader in readers)):
            _fold(node, readers)


def norm_readers(norm: ir.Node, layers: dict[int, Linear]) -> list[Linear]:
    """The layers that read a norm, if nothing else does."""
    users = [use.node for use in norm.outputs[0].uses()]
    if len(users) == 1 and users[0].op_type == "Squeeze":
        users = [use.node for use in users[0].outputs[0].uses()]
    if norm.outputs[0].is_graph_output() or any(id(user) not in layers for user in users):
        return []
    return [layers[id(user)] for user in users]


def float_of(value: ir.Value | None) -> Float:
    """The values of an initializer in float32."""
    stored = initializer(value)
    assert stored is not None
    return np.asarray(tensor_of(stored).numpy(), np.float32)


def put_float(value: ir.Value | None, array: Float) -> None:
    """Give an initializer other values."""
    stored = initializer(value)
    assert stored is not None
    set_float(stored, ir.tensor(array, name=stored.name))


def _fold(norm: ir.Node, readers: list[Linear]) -> None:
    gain, shift = float_of(norm.inputs[1]), None
    if len(norm.inputs) > 2:
        shift = float_of(norm.inputs[2])
        for reader in readers:
            _add_to_bias(reader, shift)
        put_float(norm.inputs[2], np.zeros_like(shift))
    for reader in readers:
        reader.change(ScaledInputs(gain, shift))
    put_float(norm.inputs[1], np.ones_like(gain))


def _add_to_bias(layer: Linear, shift: Float) -> None:
    """`b + W @ shift`, computed when it is read."""
    assert layer.bias is not None
    before, weight, columns_first = tensor_of(layer.bias), layer.tensor, layer.columns_first
    name, shape = f"{layer.name}.bias", [layer.out_features]

    def shifted() -> Float:
        moved = [rows @ shift for _, rows in row_chunks(weight, columns_first)]
        return before.numpy().astype(np.float32) + np.concatenate(moved)

    bias = lazy_array(name, lambda: compute_finite(name, shifted), ir.DataType.FLOAT, shape)
    set_float(layer.bias, bias)
