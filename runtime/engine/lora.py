"""The weights of one LoRA adapter on a device, bound as inputs of the graphs.

Knows names and shapes. Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from paligemma_edge.runtime.contract import ComputeDtype
from paligemma_edge.runtime.device.memory import DeviceMemory, TensorView
from paligemma_edge.runtime.device.ort import ort
from paligemma_edge.runtime.device.session import Session


@dataclass(frozen=True, eq=False)
class LoraWeights:
    """An adapter's weights on a device; without values it is the base model."""

    name: str
    number: int  # 0 is the base model
    memory: DeviceMemory
    dtype: ComputeDtype
    values: Mapping[str, ort.OrtValue] = field(default_factory=dict)

    def bind(self, binding: ort.IOBinding, session: Session) -> None:
        """Bind a graph's adapter inputs; layers that the adapter does not change have rank 0."""
        for name, shape in session.lora_inputs.items():
            self._view(name, shape).bind_input(binding, name)

    def _view(self, name: str, shape: tuple[int | None, ...]) -> TensorView:
        if name in self.values:
            value = self.values[name]
            return self.memory.view(value, self.dtype, tuple(value.shape()))
        return self.memory.empty_view(self.dtype, tuple(size or 0 for size in shape))
