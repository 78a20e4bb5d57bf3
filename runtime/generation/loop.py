"""The loop: requests wait, take a slot, are prefilled, step together and leave.

Speaks token ids only. A slot that ends is taken by the next request between two steps, so a
batch is never padded and never waits for its longest answer.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from paligemma_edge.runtime.contract import CORNERS_PER_BOX
from paligemma_edge.runtime.device.run_stop import RunStop
from paligemma_edge.runtime.engine.engine import Engine
from paligemma_edge.runtime.engine.kv_cache import KVCache
from paligemma_edge.runtime.engine.logits import Row
from paligemma_edge.runtime.generation.feature_cache import ImageFeatureCache
from paligemma_edge.runtime.generation.request import Request
from paligemma_edge.runtime.generation.select_token import select_token
from paligemma_edge.runtime.generation.top_log_probs import top_log_probs
from paligemma_edge.runtime.grammar.base import State
from paligemma_edge.runtime.results.generation import FinishReason, TokenLogProb
from paligemma_edge.runtime.timing import Stopwatch


@dataclass(eq=False)
class ActiveSequence:
    """A request in its slot, and its answer so far."""

    number: int  # its place among the requests
    request: Request
    eos_ids: Collection[int]
    locations: range  # the tokens that a box consists of
    state: State | None  # of the grammar
    watch: Stopwatch = field(default_factory=Stopwatch)
    tokens: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    box_log_probs: dict[int, float] = field(default_factory=dict)  # see `Generation`
    top_log_probs: list[tuple[TokenLogProb, ...]] = field(default_factory=list)
    corners: int = 0  # of the box that the last tokens belong to

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the answer has ended, None while it has not. Nothing else decides it."""
        if self.tokens and self.tokens[-1] in self.eos_ids:
            return "stop"
        return "length" if len(self.tokens) == self.request.max_new_tokens else None

    def extend(self, row: Row) -> GeneratedToken:
        """Choose the next token from the logits that follow the last one."""
        allowed = None if self.state is None else self.state.allowed
        token = select_token(self.request.sampling, row, allowed, len(self.tokens))
        if self.state is not None:
            self.state = self.state.after(token)
        self._watch_boxes(row, token)
        if count := self.request.top_log_probs:
            self.top_log_probs.append(top_log_probs(row, count))
        self.tokens.append(token)
        self.log_probs.append(row.log_prob(token))
        return GeneratedToken(self, token, self.log_probs[-1], self.finish_reason)

    def _watch_boxes(self, row: Row, token: int) -> None:
        """Where a box begins, note how likely it was that any box begins there."""
        if token not in self.locations:
            self.corners = 0
            return
        if self.corners % CORNERS_PER_BOX == 0:
            self.box_log_probs[len(self.tokens)] = row.log_prob_of_any(self.locations)
        self.corners += 1


class GeneratedToken(NamedTuple):
    """The newest token of a sequence, the model's log-probability for it, and whether it ends."""

    sequence: ActiveSequence
    token: int
    log_prob: float
    finish_reason: FinishReason | None


class FailedSequence(NamedTuple):
    """A sequence that has no next token, such as one whose logits are not numbers."""

    sequence: ActiveSequence
    error: Exception


def generate(loop: SlotLoop, requests: Iterable[Request]) -> Iterator[GeneratedToken]:
    """Answer requests in the slots of a loop; yield tokens as they come.

    A token that ends an answer is yielded too, last of an answer that ended by itself. `requests`
    is read only as slots become free. What a sequence fails with is raised.
    """
    waiting = enumerate(requests)
    yield from _admit_all(loop, waiting)
    while loop.running:
        for generated in loop.step():
            if isinstance(generated, FailedSequence):
                raise generated.error
            yield generated
        yield from _admit_all(loop, waiting)


def _admit_all(loop: SlotLoop, waiting: Iterator[tuple[int, Request]]) -> Iterator[GeneratedToken]:
    """Fill free slots with requests; yield the first token of each."""
    while loop.has_free_slot and (entry := next(waiting, None)) is not None:
        number, request = entry
        yield loop.admit(number, request)


@dataclass(frozen=True)
class SlotLoop:
    """The slots of a cache, and the sequences that step in them.

    `features` encodes images that are not in it yet. Each of `eos_ids` ends an answer.
    `locations` are the tokens that boxes consist of.
    """

    engine: Engine
    features: ImageFeatureCache
    cache: KVCache
    slots: int  # of the cache, the first ones
    eos_ids: Collection[int]
    locations: range
    running: dict[int, ActiveSequence] = field(default_factory=dict)  # by slot

    @property
    def has_free_slot(self) -> bool:
        """Whether another request can be admitted."""
        return len(self.running) < self.slots

    def admit(self, number: int, request: Request, stop: RunStop | None = None) -> GeneratedToken:
        """Prefill a request into the first free slot → its first token.

        Where that fails the slot is free again; `stop` lets another thread end it early.
        """
        with self.borrow_slot() as slot:
            sequence = ActiveSequence(number, request, self.eos_ids, self.locations, request.state)
            row = self._prefill(slot, sequence, stop)
            generated = sequence.extend(row)
            if generated.finish_reason is None:
                self.running[slot] = sequence
            return generated

    def step(self) -> Iterator[GeneratedToken | FailedSequence]:
        """Append one token to every running sequence; yield the tokens, to be read to the end."""
        slots = max(self.running) + 1
        stepper = self.engine.stepper(self.cache, slots)
        start = time.perf_counter()
        last = [self.running[s].tokens[-1] if s in self.running else 0 for s in range(slots)]
        logits = stepper.step(last)
        seconds = time.perf_counter() - start
        for slot, sequence in list(self.running.items()):
            sequence.watch.add("steps", seconds)
            yield self._extend(slot, logits[slot])

    def cancel(self, number: int) -> None:
        """End the sequence of a request, if it is running."""
        for slot, sequence in list(self.running.items()):
            if sequence.number == number:
                self._leave(slot)

    @contextmanager
    def borrow_slot(self) -> Iterator[int]:
        """A free slot, which is free again afterwards unless a sequence runs in it."""
        slot = next(slot for slot in range(self.slots) if slot not in self.running)
        try:
            yield slot
        finally:
            if slot not in self.running:
                self.cache.lengths[slot] = 0

    def _prefill(self, slot: int, sequence: ActiveSequence, stop: RunStop | None) -> Row:
        """Read and encode the images of a request, then its prompt → logits of what follows."""
        watch, request = sequence.watch, sequence.request
        features = self.features.features(request.read(watch), watch, stop)
        with watch.measure("prefill"):
            return self.engine.prefill(self.cache, slot, features, request.ids, stop)

    def _extend(self, slot: int, row: Row) -> GeneratedToken | FailedSequence:
        """Choose a slot's next token; an answer that has ended leaves its slot."""
        sequence = self.running[slot]
        try:
            generated = sequence.extend(row)
        except Exception as error:
            self._leave(slot)
            return FailedSequence(sequence, error)
        if generated.finish_reason is not None:
            self._leave(slot)
        return generated

    def _leave(self, slot: int) -> None:
        del self.running[slot]
        self.cache.lengths[slot] = 0
