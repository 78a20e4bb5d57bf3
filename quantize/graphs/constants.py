"""Tensors that a pass adds to a graph."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray


def add_constant(model: ir.Model, name: str, array: NDArray[Any]) -> ir.Value:
    """Register a small array, once."""
    known = model.graph.initializers.get(name)
    return add_initializer(model, name, ir.tensor(array, name=name)) if known is None else known


def add_initializer(model: ir.Model, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """Register a tensor as an initializer of that name."""
    value = ir.Value(
        name=name,
        type=ir.TensorType(tensor.dtype),
        shape=ir.Shape(tensor.shape.numpy()),
        const_value=tensor,
    )
    model.graph.register_initializer(value)
    return value
