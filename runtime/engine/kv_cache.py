"""Slots of keys and values: one block of memory, written in place by the decoder.

A slot is one row of every layer's keys and values. The same memory is bound as past and as
present, so nothing is copied between tokens; a prefill binds the one row of its slot.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from paligemma_edge.runtime import contract
from paligemma_edge.runtime.contract import ComputeDtype, itemsize
from paligemma_edge.runtime.device.memory import DeviceMemory
from paligemma_edge.runtime.device.ort import ort
from paligemma_edge.runtime.engine.decode_step import Stepper
from paligemma_edge.runtime.engine.logits import Outputs
from paligemma_edge.runtime.manifest import ModelConfig


@dataclass(frozen=True, eq=False)
class KVCache:
    """Keys and values of `slots` sequences of at most `capacity` tokens each.

    `lengths` int32 [slots] is the number of tokens that each slot has seen; 0 is a free slot.
    `steppers` are the decoders that are bound to these slots already, by first slot, number of
    slots and adapter.
    """

    memory: DeviceMemory
    values: ort.OrtValue  # bytes: of each layer its keys, then its values
    dtype: ComputeDtype
    layers: int
    row_shape: tuple[int, int, int]  # kv_heads, capacity, head_dim
    lengths: NDArray[np.int32]
    outputs: Outputs  # where the decoder writes the logits of each slot
    cuda_graph: bool = False  # its steps may be recorded: it lives as long as the engine
    steppers: dict[tuple[int, int, str], Stepper] = field(default_factory=dict)

    @classmethod
    def allocate(
        cls,
        memory: DeviceMemory,
        config: ModelConfig,
        dtype: ComputeDtype,
        *,
        slots: int,
        capacity: int,
        outputs: Outputs,
        cuda_graph: bool = False,
    ) -> KVCache:
        """Zeros on the device; a CPU's pages are allocated when they are first written."""
        values = memory.put(np.zeros(slots * config.cache_bytes(capacity, dtype), np.uint8))
        row = (config.num_kv_heads, capacity, config.head_dim)
        lengths = np.zeros(slots, np.int32)
        return cls(memory, values, dtype, config.num_layers, row, lengths, outputs, cuda_graph)

    @property
    def capacity(self) -> int:
        """Tokens that one slot can hold."""
        return self.row_shape[1]

    @property
    def slots(self) -> int:
        """Sequences that the cache can hold."""
        return len(self.lengths)

    def bind(self, binding: ort.IOBinding, first: int, count: int) -> None:
        """Bind slots `first` to `first + count` as the decoder's past and present."""
        shape = (count, *self.row_shape)
        row = int(np.prod(self.row_shape)) * itemsize(self.dtype)
        for index in range(2 * self.layers):
            layer, part = divmod(index, 2)
            offset = (index * self.slots + first) * row
            view = self.memory.view(self.values, self.dtype, shape, offset)
            view.bind_input(binding, contract.past_names(layer)[part])
            view.bind_output(binding, contract.present_names(layer)[part])
