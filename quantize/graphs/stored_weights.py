"""Weights where they are stored: read in parts, and checked before they are computed with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol, runtime_checkable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from paligemma_edge.quantize.graphs.check_finite import require_finite
from paligemma_edge.runtime.errors import BundleError

_CHUNK = 16 << 20  # values that are read at a time
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


@runtime_checkable
class StoredTensor(Protocol):
    """A tensor in a file, which can be read in parts."""

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Elements `start` to `stop` in the order in which they are stored, flat."""
        ...

    def chunks(self) -> Iterator[NDArray[Any]]:
        """All elements in that order, flat, some at a time."""
        ...


class FiniteTensor(ir.LazyTensor):
    """A weight that is read from where it is stored, each time anew.

    Every read raises OptionError where what was read holds NaN or Inf.
    """

    def __init__(self, source: ir.TensorProtocol, name: str) -> None:
        super().__init__(
            self._evaluate, source.dtype, ir.Shape(source.shape.numpy()), name=source.name
        )
        self.source = source
        self.weight = name  # in the graph: what an error calls it

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Elements `start` to `stop`, flat."""
        return require_finite(self.weight, read_flat(self.source, start, stop))

    def chunks(self) -> Iterator[NDArray[Any]]:
        """All elements, flat, some at a time."""
        for chunk in read_chunks(self.source):
            yield require_finite(self.weight, chunk)

    def tofile(self, file: BinaryIO) -> None:
        """Copy the bytes without ever holding all of them."""
        for chunk in self.chunks():
            file.write(np.ascontiguousarray(chunk).view(np.uint8).data)

    def __repr__(self) -> str:
        return f"{self._repr_base()}(name={self.name!r}, source={self.source!r})"

    def _evaluate(self) -> ir.TensorProtocol:
        array = self.read(0, self.size).reshape(self.shape.numpy())
        return ir.Tensor(array, self.dtype, name=self.name)


def check_weights(models: Iterable[ir.Model]) -> None:
    """Let the float weights of some graphs be checked whenever they are read, shared ones too."""
    checked: dict[ir.TensorProtocol, FiniteTensor] = {}
    for model in models:
        for name, value in model.graph.initializers.items():
            tensor = value.const_value
            if tensor is None or tensor.dtype not in _FLOATS or isinstance(tensor, FiniteTensor):
                continue
            value.const_value = checked.setdefault(tensor, FiniteTensor(tensor, name))


def read_weights(models: Iterable[ir.Model]) -> None:
    """Read every float weight, some values at a time; OptionError names one with NaN or Inf."""
    for model in models:
        for name, value in model.graph.initializers.items():
            if value.const_value is not None and value.const_value.dtype in _FLOATS:
                for _ in FiniteTensor(value.const_value, name).chunks():
                    pass


def read_flat(tensor: ir.TensorProtocol, start: int, stop: int) -> NDArray[Any]:
    """Some elements of a tensor in its own dtype, in the order in which they are stored.

    Files are read and not mapped: pages of a mapped file count as resident memory.
    """
    if isinstance(tensor, StoredTensor):
        return tensor.read(start, stop)
    if not isinstance(tensor, ir.ExternalTensor):
        return tensor.numpy().reshape(-1)[start:stop]
    kind = tensor.dtype.numpy()
    with Path(tensor.path).open("rb", buffering=0) as file:
        file.seek((tensor.offset or 0) + start * kind.itemsize)
        array = np.fromfile(file, kind, stop - start)
    if len(array) < stop - start:
        raise BundleError(f"{tensor.path} ends early; it changed while it was read")
    return array


def read_chunks(tensor: ir.TensorProtocol) -> Iterator[NDArray[Any]]:
    """All elements of a tensor in that order, flat, some at a time."""
    if isinstance(tensor, StoredTensor):
        yield from tensor.chunks()
        return
    whole = None if isinstance(tensor, ir.ExternalTensor) else tensor.numpy().reshape(-1)
    for start in range(0, tensor.size, _CHUNK):
        stop = min(start + _CHUNK, tensor.size)
        yield read_flat(tensor, start, stop) if whole is None else whole[start:stop]


def read_all(tensor: ir.TensorProtocol) -> NDArray[Any]:
    """A tensor's values in its own dtype, as a copy."""
    return read_flat(tensor, 0, tensor.size).reshape(tensor.shape.numpy())
