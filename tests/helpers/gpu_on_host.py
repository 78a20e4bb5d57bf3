"""A stand-in for a GPU: variants for CUDA on ONNX Runtime's CPU provider, by the same code.

Graphs in float16 run there. Bytes that are copied between host and "GPU" are counted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from numpy.typing import NDArray

from paligemma_edge import PaliGemma
from paligemma_edge.runtime.device.device import Device
from paligemma_edge.runtime.device.memory import DeviceMemory
from paligemma_edge.runtime.device.ort import ort
from paligemma_edge.runtime.loading import loaded_model


@dataclass
class Copies:
    """Bytes that were copied each way."""

    to_gpu: int = 0
    to_host: int = 0

    def take(self) -> tuple[int, int]:
        """Bytes copied to the GPU and to the host since the last call."""
        copied = (self.to_gpu, self.to_host)
        self.to_gpu = self.to_host = 0
        return copied


@dataclass(frozen=True)
class CountedMemory(DeviceMemory):
    copies: Copies = field(default_factory=Copies)

    def put(self, array: NDArray[Any]) -> ort.OrtValue:
        self.copies.to_gpu += array.nbytes
        return super().put(array)

    def write(self, value: ort.OrtValue, array: NDArray[Any]) -> None:
        self.copies.to_gpu += array.nbytes
        super().write(value, array)

    def read(self, value: ort.OrtValue) -> NDArray[Any]:
        array = super().read(value)
        self.copies.to_host += array.nbytes
        return array


@dataclass(frozen=True, kw_only=True)
class GpuOnHost(Device):
    counted: CountedMemory = field(default_factory=CountedMemory)

    @property
    def memory(self) -> CountedMemory:
        return self.counted


def open_on_host(
    bundle: Path,
    variant: str,
    monkeypatch: pytest.MonkeyPatch,
    **load: Any,  # noqa: ANN401 - those of PaliGemma
) -> tuple[PaliGemma, Copies]:
    """Open a variant for CUDA on the CPU."""
    gpu = GpuOnHost(name="cpu", threads=2, cuda_graph=load.get("cuda_graph", False))
    with monkeypatch.context() as patched:
        patched.setattr(loaded_model, "device_for", lambda *_, **__: gpu)
        model = PaliGemma(bundle, variant=variant, **load)
    return model, gpu.counted.copies
