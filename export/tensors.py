"""Tensors of a safetensors file that stay on disk until they are asked for.

The header is checked by the safetensors library: bounded length, known dtypes, offsets in
range, no overlap and no hole (https://github.com/huggingface/safetensors, "Format"). Values are
read with plain reads: pages of a mapped file would count as resident memory.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import safetensors

from paligemma_edge.runtime.errors import CheckpointError

CHUNK_BYTES = 16 << 20
Array = npt.NDArray[Any]

_DTYPES = {
    "F32": ir.DataType.FLOAT,
    "F16": ir.DataType.FLOAT16,
    "BF16": ir.DataType.BFLOAT16,
}
_OTHER_BYTES = {"I64": 8, "F64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_NUMPY: dict[ir.DataType, np.dtype[Any]] = {
    ir.DataType.FLOAT: np.dtype("<f4"),
    ir.DataType.FLOAT16: np.dtype("<f2"),
    ir.DataType.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
}


class CheckpointTensor(ir.LazyTensor):
    """A float32, float16 or bfloat16 tensor in a safetensors file.

    Every use reads it anew and nothing is kept. `numpy()` of bfloat16 is `ml_dtypes.bfloat16`.
    Reads raise CheckpointError when the file has gone or has been cut since it was opened.
    """

    def __init__(
        self, path: Path, offset: int, dtype: ir.DataType, shape: tuple[int, ...], name: str
    ) -> None:
        super().__init__(self._load, dtype, ir.Shape(shape, frozen=True), name=name)
        self.path = path
        self.offset = offset

    def tofile(self, file: BinaryIO) -> None:
        """Copy the bytes to `file`, at most 16 MiB at a time."""
        for chunk in self.chunks():
            file.write(chunk.view(np.uint8).data)

    def chunks(self) -> Iterator[Array]:
        """Read the elements in order, flat, at most 16 MiB at a time."""
        step = CHUNK_BYTES // _NUMPY[self.dtype].itemsize
        for start in range(0, self.size, step):
            yield self.read(start, min(start + step, self.size))

    def read(self, start: int, stop: int) -> Array:
        """Elements `start` to `stop` in the order of the file, flat."""
        array = np.empty(stop - start, _NUMPY[self.dtype])
        view, done = array.view(np.uint8).data, 0
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(self.offset + start * array.itemsize)
                while done < len(view) and (count := file.readinto(view[done:])):
                    done += count
        except OSError as error:
            raise CheckpointError(
                f"{self.path} cannot be read: {error}; keep the checkpoint while it is exported"
            ) from error
        if done < len(view):
            raise CheckpointError(
                f"{self.path} ends {len(view) - done} bytes early in {self.name!r}; "
                "it changed while it was read: download or save it again"
            )
        return array

    def _load(self) -> ir.Tensor[Array]:
        array = self.read(0, self.size).reshape(self.shape.numpy())
        return ir.Tensor(array, self.dtype, name=self.name)

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> Array:
        return self.numpy().astype(dtype, copy=False) if dtype is not None else self.numpy()

    def __repr__(self) -> str:
        return f"{self._repr_base()}(name={self.name!r}, path={str(self.path)!r})"


def read_tensors(
    path: Path, ignore: Callable[[str], bool] = lambda _: False
) -> dict[str, CheckpointTensor]:
    """Read the header of a safetensors file: key to tensor, in the order of the file.

    Keys that `ignore` accepts are left out. Raises CheckpointError for a damaged file and for
    dtypes that are no plain float.
    """
    try:
        with path.open("rb") as file:
            prefix = file.read(8)
        with safetensors.safe_open(path, framework="numpy") as header:
            slices = [(key, header.get_slice(key)) for key in header.offset_keys()]
            specs = [(key, part.get_dtype(), tuple(part.get_shape())) for key, part in slices]
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(
            f"{path} is no sound safetensors file: {error}; download or save it again"
        ) from None
    tensors = _place(path, 8 + struct.unpack("<Q", prefix)[0], specs, ignore)
    return {str(tensor.name): tensor for tensor in tensors}


def _place(
    path: Path,
    offset: int,
    specs: list[tuple[str, str, tuple[int, ...]]],
    ignore: Callable[[str], bool],
) -> Iterator[CheckpointTensor]:
    """Tensors lie end to end in the order of their offsets: the library has checked that."""
    for key, kind, shape in specs:
        if ignore(key) and kind in _OTHER_BYTES:
            offset += math.prod(shape) * _OTHER_BYTES[kind]
            continue
        if kind not in _DTYPES:
            raise CheckpointError(
                f"{path} holds {key!r} as {kind}, wanted F32, BF16 or F16; "
                "export the checkpoint as it was before it was quantized"
            )
        tensor = CheckpointTensor(path, offset, _DTYPES[kind], shape, key)
        offset += tensor.nbytes
        if not ignore(key):
            yield tensor
