"""Lets a float32 graph compute in float16 or bfloat16, for devices that are fast at it.

Follows the plan of `half_plan`: casts stand where the plan changes from one dtype to the other,
one for all readers of a value, and weights are stored in the dtype that their readers want.

The logits are float32 for the runtime, but the head's product rounds them to half precision, as
the original does in that dtype: ONNX Runtime has no product from half precision to float32. For
bfloat16 that is 1/8 between 16 and 32; `refine_logits` makes the best of them exact again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, BinaryIO

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from paligemma_edge.quantize.graphs.check_finite import all_finite
from paligemma_edge.quantize.graphs.derived_weights import DerivedMatrix, row_chunks
from paligemma_edge.quantize.graphs.linear import initializer, tensor_of
from paligemma_edge.quantize.graphs.stored_weights import read_chunks
from paligemma_edge.quantize.schemes.half_plan import (
    ALWAYS_FLOAT,
    FLOAT,
    HalfPlan,
    is_float,
    plan_half,
)
from paligemma_edge.runtime.errors import OptionError

HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def to_half(model: ir.Model, dtype: ir.DataType, *, keep_float: Collection[str] = ()) -> None:
    """Let a graph compute in `dtype`, with hidden states, features, keys and values in it too.

    `keep_float` names layers such as decoder.layers.3.down_proj that compute in float32, with
    what is between them and the next layer or the residual stream; `ranges` finds those that
    need it. A layer of MatMulNBits may be among them. Pixels and logits stay float32.
    """
    assert dtype in HALVES, f"{dtype} is not half precision"
    plan = plan_half(model, dtype, keep_float=keep_float)
    rewrite = _Rewrite(model, dtype, plan)
    for node in list(model.graph):
        if node.op_type != "Cast":
            rewrite.operands(node)
    for value, wanted in {**plan.values, **dict.fromkeys(plan.integers, ir.DataType.INT64)}.items():
        value.type = ir.TensorType(wanted)
    for place in range(len(model.graph.outputs)):
        rewrite.output(place)
    RemoveUnusedNodesPass()(model)
    rewrite.rename_weights()


class _Rewrite:
    """The casts and the weights that were added so far, each once."""

    def __init__(self, model: ir.Model, dtype: ir.DataType, plan: HalfPlan) -> None:
        self.graph, self.dtype, self.plan = model.graph, dtype, plan
        self.casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self.weights: dict[ir.Value, ir.Value] = {}

    def operands(self, node: ir.Node) -> None:
        """Let a node read all its floats in the dtype that it computes in."""
        for place, value in enumerate(node.inputs):
            if value is not None and (value in self.plan.values or is_float(value)):
                node.replace_input_with(place, self._as(value, self.plan.nodes[node]))

    def output(self, place: int) -> None:
        """Give an output the dtype of the contract, and keep its name."""
        value = self.graph.outputs[place]
        wanted = FLOAT if value.name in ALWAYS_FLOAT else self.dtype
        planned = self.plan.values.get(value)
        if planned is None or planned == wanted:
            return
        cast, name = self._cast(value, wanted), value.name
        value.name, cast.name = f"{name}.{planned.name.lower()}", name
        self.graph.outputs[place] = cast

    def rename_weights(self) -> None:
        """A converted weight takes the name of the one that nothing reads any more."""
        for stored, converted in self.weights.items():
            if not stored.uses() and stored.name not in self.graph.initializers:
                del self.graph.initializers[str(converted.name)]
                converted.name = stored.name
                self.graph.register_initializer(converted)

    def _as(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        stored = initializer(value)
        if stored is not None:
            return self._weight(stored, value, dtype)
        return value if self.plan.values[value] == dtype else self._cast(value, dtype)

    def _weight(self, stored: ir.Value, read: ir.Value, dtype: ir.DataType) -> ir.Value:
        """A weight in `dtype`; `read` is the weight itself or a `Cast` of it to float32."""
        tensor = tensor_of(stored)
        if tensor.dtype == dtype:
            return stored
        if dtype == FLOAT:
            return self._cast(stored, FLOAT) if read is stored else read
        if stored not in self.weights:
            converted = ir.Value(
                name=f"{stored.name}.{dtype.name.lower()}",
                type=ir.TensorType(dtype),
                shape=ir.Shape(tensor.shape.numpy()),
                const_value=Halved(tensor, dtype),
            )
            self.graph.register_initializer(converted)
            self.weights[stored] = converted
        return self.weights[stored]

    def _cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        if (value, dtype) not in self.casts:
            node = ir.node("Cast", [value], attributes={"to": dtype})
            cast, producer = node.outputs[0], value.producer()
            cast.name = f"{value.name}.{dtype.name.lower()}"
            cast.type, cast.shape = ir.TensorType(dtype), value.shape
            if producer is None:
                self.graph.insert_before(self.graph[0], node)
            else:
                self.graph.insert_after(producer, node)
            self.casts[value, dtype] = cast
        return self.casts[value, dtype]


class Halved(ir.LazyTensor):
    """Another tensor in half precision, converted when it is written, some values at a time.

    OptionError where a value is beyond float16. Below 2**-14 its values are 2**-24 apart: a scale
    there is off by up to 2**-25 (it may become zero), and a weight of 8 bits so by up to 2**-18.
    """

    def __init__(self, source: ir.TensorProtocol, dtype: ir.DataType) -> None:
        super().__init__(self._evaluate, dtype, ir.Shape(source.shape.numpy()), name=source.name)
        self.source = source

    def tofile(self, file: BinaryIO) -> None:
        """Write the bytes without ever holding all of them."""
        for chunk in self._chunks():
            file.write(np.ascontiguousarray(chunk).view(np.uint8).data)

    def __repr__(self) -> str:
        return f"{self._repr_base()}(name={self.name!r}, source={self.source!r})"

    def _evaluate(self) -> ir.Tensor[NDArray[Any]]:
        flat = np.concatenate([np.ravel(chunk) for chunk in self._chunks()])
        return ir.Tensor(flat.reshape(self.shape.numpy()), self.dtype, name=self.name)

    def _chunks(self) -> Iterator[NDArray[Any]]:
        for values in _pieces(self.source):
            with np.errstate(over="ignore"):
                converted = values.astype(self.dtype.numpy())
            if not all_finite(converted):
                raise OptionError(
                    f"{self.name} holds {np.abs(values).max():.6g}, {self.dtype.name.lower()} "
                    "does not reach that far; use a recipe that computes in bfloat16 or float32"
                )
            yield converted


def _pieces(tensor: ir.TensorProtocol) -> Iterator[NDArray[Any]]:
    """The values in the order in which they are stored."""
    if isinstance(tensor, DerivedMatrix) and not tensor.columns_first:
        yield from (rows for _, rows in row_chunks(tensor, columns_first=False))
        return
    yield from read_chunks(tensor)
