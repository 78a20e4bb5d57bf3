"""Where tensors are stored: the memory of one device, through ONNX Runtime.

Knows shapes, dtypes and addresses. Knows no graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from paligemma_edge.runtime.contract import ComputeDtype
from paligemma_edge.runtime.device.ort import ort
from paligemma_edge.runtime.device.ort_errors import wrap_ort_errors

DeviceKind = Literal["cpu", "cuda"]
# Numbers of ONNX's TensorProto.DataType: NumPy has no name for bfloat16.
Element: TypeAlias = ComputeDtype | Literal["int64"]
_ELEMENT_TYPES: Mapping[Element, int] = {"float32": 1, "int64": 7, "float16": 10, "bfloat16": 16}


@dataclass(frozen=True)
class DeviceMemory:
    """The memory of a device: the host's own, or that of the CUDA GPU with an index.

    Everything that is copied between host and GPU goes through `put`, `write` and `read`, which
    raise DeviceError on failure.
    """

    device: DeviceKind = "cpu"
    index: int = 0

    def put(self, array: NDArray[Any]) -> ort.OrtValue:
        """A host array copied to the device; on the CPU it is the array's own memory."""
        contiguous = np.ascontiguousarray(array)
        with wrap_ort_errors(
            f"{array.nbytes:,} bytes of memory could not be allocated", self.device
        ):
            return ort.OrtValue.ortvalue_from_numpy(contiguous, self.device, self.index)

    def write(self, value: ort.OrtValue, array: NDArray[Any]) -> None:
        """Copy a host array over a value of the same shape and dtype."""
        with wrap_ort_errors("memory could not be written", self.device):
            value.update_inplace(array)

    def read(self, value: ort.OrtValue) -> NDArray[Any]:
        """A copy of a value as a host array."""
        with wrap_ort_errors("memory could not be read", self.device):
            array: NDArray[Any] = value.numpy()
        return array.copy() if self.device == "cpu" else array  # on the CPU it is a view

    def view(
        self, value: ort.OrtValue, dtype: Element, shape: tuple[int, ...], offset: int = 0
    ) -> TensorView:
        """A tensor within a value of this memory, `offset` bytes after its start."""
        address = value.data_ptr() + offset
        return TensorView((self.device, self.index, _ELEMENT_TYPES[dtype], shape, address))

    def empty_view(self, dtype: ComputeDtype, shape: tuple[int, ...]) -> TensorView:
        """A tensor without values: one of its sizes is 0."""
        return TensorView((self.device, self.index, _ELEMENT_TYPES[dtype], shape, 0))


@dataclass(frozen=True)
class TensorView:
    """A tensor in memory that is owned elsewhere: device, index, dtype, shape, address."""

    arguments: tuple[DeviceKind, int, int, tuple[int, ...], int]

    def bind_input(self, binding: ort.IOBinding, name: str) -> None:
        """Bind it as an input. The caller keeps the memory alive."""
        binding.bind_input(name, *self.arguments)

    def bind_output(self, binding: ort.IOBinding, name: str) -> None:
        """Bind it as an output. The caller keeps the memory alive."""
        binding.bind_output(name, *self.arguments)
