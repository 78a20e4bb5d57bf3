"""Logits that stay on a GPU, with the argmax that the decoder computed itself.

Small graphs select the logits that a grammar or a sampling policy needs, so that a whole row of
257,216 logits is copied to the host only where all of it is needed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from paligemma_edge.runtime import contract
from paligemma_edge.runtime.device.memory import DeviceMemory
from paligemma_edge.runtime.device.ort import ort
from paligemma_edge.runtime.device.session import Session
from paligemma_edge.runtime.engine.logits import Shortlist
from paligemma_edge.runtime.engine.scores import log_sum_exp, require_number


@dataclass(frozen=True)
class Pickers:
    """The small graphs that read a row of logits on the GPU."""

    pick: Session
    shortlist: Session
    ranges: dict[range, ort.OrtValue] = field(default_factory=dict)  # their ids, on the GPU


@dataclass(frozen=True)
class DeviceOutputs:
    """Where the decoder writes logits, argmax and its log-probability on a GPU."""

    memory: DeviceMemory
    pickers: Pickers
    vocab: int
    image_id: int
    logits: ort.OrtValue  # float32 [slots, 1, vocab]
    tokens: ort.OrtValue  # int64 [slots, 1]
    log_probs: ort.OrtValue  # float32 [slots, 1]

    @classmethod
    def allocate(
        cls, memory: DeviceMemory, pickers: Pickers, slots: int, vocab: int, image_id: int
    ) -> DeviceOutputs:
        """New memory for `slots` slots."""
        return cls(
            memory,
            pickers,
            vocab,
            image_id,
            memory.put(np.zeros((slots, 1, vocab), np.float32)),
            memory.put(np.zeros((slots, 1), np.int64)),
            memory.put(np.zeros((slots, 1), np.float32)),
        )

    def bind(self, binding: ort.IOBinding, first: int, count: int) -> None:
        """Bind slots `first` to `first + count` as the decoder's outputs."""
        view = self.memory.view
        view(self.logits, "float32", (count, 1, self.vocab), 4 * self.vocab * first).bind_output(
            binding, contract.LOGITS
        )
        view(self.tokens, "int64", (count, 1), 8 * first).bind_output(binding, contract.NEXT_TOKEN)
        view(self.log_probs, "float32", (count, 1), 4 * first).bind_output(
            binding, contract.NEXT_LOG_PROB
        )

    def read(self) -> DeviceLogits:
        """The outputs of the last run."""
        read = self.memory.read
        return DeviceLogits(self, read(self.tokens), read(self.log_probs))

    def pick(self, slot: int, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Logits of some tokens."""
        return self._pick(slot, self.memory.put(tokens))

    def pick_range(self, slot: int, tokens: range) -> NDArray[np.float32]:
        """Logits of a range of tokens, whose ids are copied to the GPU once."""
        ranges = self.pickers.ranges
        if tokens not in ranges:
            ranges[tokens] = self.memory.put(np.arange(tokens.start, tokens.stop))
        return self._pick(slot, ranges[tokens])

    def _pick(self, slot: int, tokens: ort.OrtValue) -> NDArray[np.float32]:
        binding = self._row(self.pickers.pick, slot)
        binding.bind_ortvalue_input(contract.TOKENS, tokens)
        (picked,) = self.pickers.pick.finish(binding, contract.PICKED)
        return self.memory.read(picked)

    def shortlist(self, slot: int) -> Shortlist:
        """The most likely tokens."""
        session = self.pickers.shortlist
        outputs = (contract.TOP_TOKENS, contract.TOP_LOGITS)
        tokens, logits = session.finish(self._row(session, slot), *outputs)
        return Shortlist(self.memory.read(tokens), self.memory.read(logits))

    def _row(self, session: Session, slot: int) -> ort.IOBinding:
        binding, row = session.binding(), self.vocab * np.dtype(np.float32).itemsize
        view = self.memory.view(self.logits, "float32", (1, 1, self.vocab), slot * row)
        view.bind_input(binding, contract.LOGITS)
        return binding


@dataclass(frozen=True, eq=False)
class DeviceLogits:
    """The outputs of one run: argmax on the host, logits on the GPU."""

    outputs: DeviceOutputs
    tokens: NDArray[np.int64]  # [slots, 1]
    log_probs: NDArray[np.float32]  # [slots, 1]

    def __getitem__(self, slot: int) -> DeviceRow:
        return DeviceRow(self, slot)

    @cached_property
    def on_host(self) -> NDArray[np.float32]:
        """All logits [slots, 1, vocab], copied once."""
        return self.outputs.memory.read(self.outputs.logits)


@dataclass(frozen=True, eq=False)
class DeviceRow:
    """Logits of one slot on a GPU."""

    logits: DeviceLogits
    slot: int

    @property
    def best(self) -> int:
        """The most likely token."""
        require_number(self._best_log_prob)
        return int(self.logits.tokens[self.slot, 0])

    @property
    def whole(self) -> NDArray[np.float32]:
        """All logits, copied to the host."""
        row: NDArray[np.float32] = self.logits.on_host[self.slot, 0]
        return row

    @property
    def answer_logits(self) -> NDArray[np.float32]:
        """Logits of all answer tokens, [image_id]."""
        return self.whole[: self.logits.outputs.image_id]

    @cached_property
    def shortlist(self) -> Shortlist:
        """The most likely tokens."""
        return self.logits.outputs.shortlist(self.slot)

    def at(self, tokens: NDArray[np.intp]) -> NDArray[np.float32]:
        """Logits of some tokens."""
        return self.logits.outputs.pick(self.slot, np.asarray(tokens, np.int64))

    def log_prob(self, token: int) -> float:
        """Log-probability of a token."""
        if token == self.best:
            return self._best_log_prob
        return float(self.log_probs(np.array([token]))[0])

    def log_probs(self, tokens: NDArray[np.intp]) -> NDArray[np.float64]:
        """Log-probabilities of some tokens."""
        logits = self.at(np.append(tokens, self.best)).astype(np.float64)
        log_probs: NDArray[np.float64] = logits[:-1] - logits[-1] + self._best_log_prob
        return log_probs

    def log_prob_of_any(self, tokens: range) -> float:
        """Log-probability that one of these tokens comes next."""
        logits, best = self.logits.outputs.pick_range(self.slot, tokens), self.best
        peak = logits[best - tokens.start] if best in tokens else self.at(np.array([best]))[0]
        return log_sum_exp(logits) - float(peak) + self._best_log_prob

    @property
    def _best_log_prob(self) -> float:
        return float(self.logits.log_probs[self.slot, 0])
