"""Tensors of a checkpoint that stay on disk until they are used.

Values are read with plain reads: pages of a mapped file would count as resident memory.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from paligemma_edge.export.checkpoint.joined_file import JoinedFile
from paligemma_edge.quantize.graphs.check_finite import all_finite
from paligemma_edge.runtime.errors import CheckpointError

CHUNK_BYTES = 16 << 20
Array = npt.NDArray[Any]

NUMPY_DTYPES: Mapping[ir.DataType, np.dtype[Any]] = {
    ir.DataType.FLOAT: np.dtype("<f4"),
    ir.DataType.FLOAT16: np.dtype("<f2"),
    ir.DataType.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
}
FLOAT64 = np.dtype("<f8")


class CheckpointTensor(ir.LazyTensor, abc.ABC):
    """A float32, float16 or bfloat16 tensor of a checkpoint; float64 is read as float32.

    Every use reads it again; nothing is cached. `numpy()` of bfloat16 is `ml_dtypes.bfloat16`.
    Reads raise CheckpointError when the file was removed or cut since it was opened.
    """

    def __init__(self, dtype: ir.DataType, shape: tuple[int, ...], name: str) -> None:
        super().__init__(self._load, dtype, ir.Shape(shape, frozen=True), name=name)

    @abc.abstractmethod
    def read(self, start: int, stop: int) -> Array:
        """Elements `start` to `stop` in the order of the tensor, flat; a new array."""

    def array(self) -> Array:
        """The whole tensor in its shape."""
        return self.read(0, self.size).reshape(self.shape.numpy())

    def chunks(self) -> Iterator[Array]:
        """Read the elements in order, flat, at most 16 MiB at a time."""
        for start, stop in self._spans():
            yield self.read(start, stop)

    def tofile(self, file: BinaryIO) -> None:
        """Copy the bytes to `file`, at most 16 MiB at a time."""
        for chunk in self.chunks():
            file.write(chunk.view(np.uint8).data)

    def _spans(self) -> Iterator[tuple[int, int]]:
        step = CHUNK_BYTES // NUMPY_DTYPES[self.dtype].itemsize
        for start in range(0, self.size, step):
            yield start, min(start + step, self.size)

    def _load(self) -> ir.Tensor[Array]:
        return ir.Tensor(self.array(), self.dtype, name=self.name)

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> Array:
        return self.numpy().astype(dtype, copy=False) if dtype is not None else self.numpy()

    def __repr__(self) -> str:
        return f"{self._repr_base()}(name={self.name!r})"


class FileTensor(CheckpointTensor):
    """A tensor whose bytes are contiguous in a file, from `offset` on, float64 where `double`."""

    def __init__(
        self,
        file: JoinedFile,
        offset: int,
        dtype: ir.DataType,
        shape: tuple[int, ...],
        name: str,
        *,
        double: bool = False,
    ) -> None:
        super().__init__(dtype, shape, name)
        self.file = file
        self.offset = offset
        self.double = double

    def read(self, start: int, stop: int) -> Array:
        """Read that part of the file alone."""
        array = np.empty(stop - start, FLOAT64 if self.double else NUMPY_DTYPES[self.dtype])
        view = array.view(np.uint8).data
        try:
            done = self.file.read_into(self.offset + start * array.itemsize, view)
        except OSError as error:
            raise CheckpointError(
                f"{self.file} cannot be read: {error}; keep the checkpoint while it is exported"
            ) from error
        if done < len(view):
            raise CheckpointError(
                f"{self.file} ends {len(view) - done} bytes early in {self.name!r}; "
                "it changed while it was read: download or save it again"
            )
        return as_float32(array, str(self.name)) if self.double else array

    def reshaped(self, shape: tuple[int, ...]) -> FileTensor:
        """The same elements in another shape."""
        assert math.prod(shape) == self.size
        return FileTensor(
            self.file, self.offset, self.dtype, shape, str(self.name), double=self.double
        )


class ComputedTensor(CheckpointTensor):
    """A tensor that is computed from others as a whole, at each use."""

    def __init__(
        self, compute: Callable[[], Array], dtype: ir.DataType, shape: tuple[int, ...], name: str
    ) -> None:
        super().__init__(dtype, shape, name)
        self._compute = compute

    def array(self) -> Array:
        """Compute it; where it is only transposed, this is a view of what was read."""
        return self._compute()

    def read(self, start: int, stop: int) -> Array:
        """Compute all of it and return a part."""
        return self._compute().reshape(-1)[start:stop]

    def chunks(self) -> Iterator[Array]:
        """Compute it once and return it in parts."""
        flat = self._compute().reshape(-1)
        for start, stop in self._spans():
            yield flat[start:stop]


class CastTensor(CheckpointTensor):
    """Another tensor's values, rounded to another dtype.

    Reads raise CheckpointError, which names `origin`, where that dtype cannot hold a value.
    """

    def __init__(self, source: CheckpointTensor, dtype: ir.DataType, origin: str) -> None:
        super().__init__(dtype, tuple(source.shape.numpy()), str(source.name))
        self._source = source
        self._origin = origin

    def read(self, start: int, stop: int) -> Array:
        """Read and round that part alone."""
        values = self._source.read(start, stop)
        if not all_finite(values):
            raise CheckpointError(
                f"{self._origin} holds NaN or Inf in {self.name}; it is damaged: train or "
                "download it again"
            )
        with np.errstate(over="ignore"):  # checked below
            cast = values.astype(NUMPY_DTYPES[self.dtype])
        if not all_finite(cast):
            raise CheckpointError(
                f"{self._origin} holds {np.abs(values).max():.6g} in {self.name}, which "
                f"{cast.dtype} cannot hold; it was trained on another base"
            )
        return cast


def as_float32(values: Array, name: str) -> Array:
    """float64 rounded to the nearest float32, as torch's `float()` does.

    CheckpointError where a number is beyond float32.
    """
    with np.errstate(over="ignore", under="ignore"):  # checked below
        rounded = values.astype(np.float32)
    if (beyond := np.isinf(rounded) & np.isfinite(values)).any():
        raise CheckpointError(
            f"{name} holds {values[beyond][0]:.6g} in float64, which float32 cannot hold, and "
            "float32 is what is computed in; train it again, or save it in float32"
        )
    return rounded


def same_values(one: CheckpointTensor, other: CheckpointTensor) -> bool:
    """Say whether two tensors are equal in shape, dtype and every bit; reads both."""
    return (one.shape == other.shape and one.dtype == other.dtype) and all(
        a.tobytes() == b.tobytes() for a, b in zip(one.chunks(), other.chunks(), strict=True)
    )
