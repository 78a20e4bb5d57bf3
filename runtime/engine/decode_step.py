"""The decoder bound to fixed memory: ids and lengths in, keys, values and logits out.

Knows addresses. Knows nothing of the meaning of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paligemma_edge.runtime import contract
from paligemma_edge.runtime.device.memory import DeviceMemory
from paligemma_edge.runtime.device.ort import ort
from paligemma_edge.runtime.device.session import Session
from paligemma_edge.runtime.engine.logits import Logits, Outputs


@dataclass(frozen=True)
class Inputs:
    """The decoder's ids and lengths, at fixed addresses."""

    memory: DeviceMemory
    ids: ort.OrtValue  # int64 [slots, text]
    seqlens_k: ort.OrtValue  # int32 [slots]
    total: NDArray[np.int32]  # []: on the host, where GroupQueryAttention reads it on any device

    @classmethod
    def of(cls, memory: DeviceMemory, ids: Sequence[Sequence[int]], keys: int) -> Inputs:
        """New memory with ids [slots, text]; each slot has `keys` keys after the run."""
        seqlens_k = np.full(len(ids), keys - 1, np.int32)
        return cls(
            memory,
            memory.put(np.array(ids, np.int64)),
            memory.put(seqlens_k),
            np.array(keys, np.int32),
        )

    def bind(self, binding: ort.IOBinding) -> None:
        """Bind them as the decoder's inputs."""
        total = ort.OrtValue.ortvalue_from_numpy(self.total)
        binding.bind_ortvalue_input(contract.INPUT_IDS, self.ids)
        binding.bind_ortvalue_input(contract.SEQLENS_K, self.seqlens_k)
        binding.bind_ortvalue_input(contract.TOTAL_SEQUENCE_LENGTH, total)

    def write(self, ids: Sequence[Sequence[int]], seqlens_k: NDArray[np.int32], total: int) -> None:
        """Copy ids [slots, text], keys after this run minus one, and the largest number of keys."""
        self.memory.write(self.ids, np.asarray(ids, np.int64))
        self.memory.write(self.seqlens_k, seqlens_k)
        self.total[...] = total


@dataclass(frozen=True)
class Stepper:
    """Runs one token of each slot at a time, with memory that was bound once."""

    session: Session
    binding: ort.IOBinding
    inputs: Inputs
    outputs: Outputs
    lengths: NDArray[np.int32]  # of the slots that are stepped, a view into the cache's
    capacity: int
    held: tuple[ort.OrtValue, ...]  # memory that the binding points into
    graph_id: int | None  # under which its runs are recorded and replayed

    def step(self, tokens: Sequence[int]) -> Logits:
        """Append a token to each slot → logits of the next token, valid until the next step.

        A free slot takes part with any token; its result is not used.
        """
        longest = int(self.lengths.max()) + 1
        assert longest <= self.capacity, "an answer is kept within the capacity"
        # A replayed run keeps the total that it was recorded with: one that holds for all steps.
        total = longest if self.graph_id is None else self.capacity
        self.inputs.write([[token] for token in tokens], self.lengths, total)
        self.session.run(self.binding, self.graph_id)
        self.lengths[self.lengths > 0] += 1
        return self.outputs.read()
