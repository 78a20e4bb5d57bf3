"""The loop: requests wait, take a slot, are prefilled, step together and leave.

Speaks token ids only. A slot that ends is taken by the next request between two steps, so a
batch is never padded and never waits for its longest answer.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from paligemma_edge.runtime.contract import CORNERS_PER_BOX
from paligemma_edge.runtime.engine.engine import Engine
from paligemma_edge.runtime.engine.kv_cache import KVCache
from paligemma_edge.runtime.engine.logits import Row
from paligemma_edge.runtime.generation.feature_cache import ImageFeatureCache
from paligemma_edge.runtime.generation.request import Request
from paligemma_edge.runtime.generation.select_token import select_token
from paligemma_edge.runtime.grammar.base import State
from paligemma_edge.runtime.results.generation import FinishReason
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


def generate(
    engine: Engine,
    features: ImageFeatureCache,
    requests: Iterable[Request],
    cache: KVCache,
    *,
    eos_ids: Collection[int],
    locations: range,
    slots: int | None = None,
) -> Iterator[GeneratedToken]:
    """Answer requests in the first `slots` slots of a cache, or all; yield tokens as they come.

    `features` encodes images that are not in it yet. Each of `eos_ids` ends an answer; it is
    yielded too, last of an answer that ended by itself. `locations` are the tokens that boxes
    consist of. `requests` is read only as slots become free.
    """
    waiting = enumerate(requests)
    loop = _Loop(engine, features, eos_ids, locations, waiting, cache, slots or cache.slots)
    yield from loop.admit()
    while loop.running:
        yield from loop.step()
        yield from loop.admit()


@dataclass(frozen=True)
class _Loop:
    """The state that travels from step to step."""

    engine: Engine
    features: ImageFeatureCache
    eos_ids: Collection[int]
    locations: range
    waiting: Iterator[tuple[int, Request]]
    cache: KVCache
    slots: int
    running: dict[int, ActiveSequence] = field(default_factory=dict)  # by slot

    def admit(self) -> Iterator[GeneratedToken]:
        """Prefill waiting requests into free slots; yield the first token of each."""
        for slot in range(self.slots):
            while slot not in self.running and (entry := next(self.waiting, None)) is not None:
                number, request = entry
                sequence = self._sequence(number, request)
                row = self._prefill(slot, sequence)
                self.running[slot] = sequence
                yield self._extend(slot, row)

    def step(self) -> Iterator[GeneratedToken]:
        """Append one token to every running sequence; yield the tokens."""
        slots = max(self.running) + 1
        stepper = self.engine.stepper(self.cache, slots)
        start = time.perf_counter()
        last = [self.running[s].tokens[-1] if s in self.running else 0 for s in range(slots)]
        logits = stepper.step(last)
        seconds = time.perf_counter() - start
        for slot, sequence in list(self.running.items()):
            sequence.watch.add("steps", seconds)
            yield self._extend(slot, logits[slot])

    def _sequence(self, number: int, request: Request) -> ActiveSequence:
        return ActiveSequence(number, request, self.eos_ids, self.locations, request.state)

    def _prefill(self, slot: int, sequence: ActiveSequence) -> Row:
        """Read and encode the images of a request, then its prompt → logits of what follows."""
        watch, request = sequence.watch, sequence.request
        features = self.features.features(request.read(watch), watch)
        with watch.measure("prefill"):
            return self.engine.prefill(self.cache, slot, features, request.ids)

    def _extend(self, slot: int, row: Row) -> GeneratedToken:
        """Choose a slot's next token; an answer that has ended leaves its slot."""
        generated = self.running[slot].extend(row)
        if generated.finish_reason is not None:
            del self.running[slot]
            self.cache.lengths[slot] = 0
        return generated
