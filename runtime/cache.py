"""Slots of keys and values: one buffer a layer, written in place by the decoder.

A slot is one row of every buffer. The same memory is bound as past and as present, so nothing
is copied between tokens; a prefill binds the one row of its slot.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from paligemma_edge.runtime import contract
from paligemma_edge.runtime.contract import ModelFacts

if TYPE_CHECKING:
    import onnxruntime as ort


@dataclass(frozen=True)
class Cache:
    """Keys and values of `slots` sequences of at most `capacity` tokens each.

    `lengths` int32 [slots] holds the tokens that each slot has seen; 0 is a free slot.
    """

    buffers: tuple[ort.OrtValue, ...]  # key and value of each layer, [slots, heads, capacity, dim]
    lengths: NDArray[np.int32]
    row_shape: tuple[int, int, int]

    @classmethod
    def allocate(cls, facts: ModelFacts, slots: int, capacity: int) -> Cache:
        """Float32 buffers on the host; their pages are taken when they are first written."""
        import onnxruntime as ort

        row = (facts.num_kv_heads, capacity, facts.head_dim)
        count = 2 * facts.num_layers
        buffers = tuple(
            ort.OrtValue.ortvalue_from_numpy(np.zeros((slots, *row), np.float32))
            for _ in range(count)
        )
        return cls(buffers, np.zeros(slots, np.int32), row)

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
        offset = first * int(np.prod(self.row_shape)) * np.dtype(np.float32).itemsize
        for index, buffer in enumerate(self.buffers):
            layer, part = divmod(index, 2)
            place = (buffer.device_name(), 0, np.float32, shape, buffer.data_ptr() + offset)
            binding.bind_input(contract.past_names(layer)[part], *place)
            binding.bind_output(contract.present_names(layer)[part], *place)
