"""The loop: requests wait, take a slot, are prefilled, step together and leave.

Speaks token ids only. A slot that ends is taken by the next request between two steps, so a
batch is never padded and never waits for its longest answer.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from paligemma_edge.runtime.cache import Cache
from paligemma_edge.runtime.contract import TokenizerFacts
from paligemma_edge.runtime.engine import Engine, Stepper
from paligemma_edge.runtime.sampling import Sampling
from paligemma_edge.runtime.stopwatch import Stopwatch


@dataclass(frozen=True)
class Request:
    """Pictures float32 [pictures, 3, R, R], the ids of a prompt, and how to answer."""

    pixel_values: NDArray[np.float32]
    ids: tuple[int, ...]
    max_new_tokens: int
    sampling: Sampling
    watch: Stopwatch = field(default_factory=Stopwatch)


def generate(
    engine: Engine, tokenizer: TokenizerFacts, requests: Iterable[Request], cache: Cache
) -> Iterator[tuple[int, int]]:
    """Answer requests in the slots of a cache; yield (number of the request, token) as they come.

    The end-of-sequence token is yielded too, last of an answer that ended by itself. `requests`
    is read only as slots become free.
    """
    loop = _Loop(engine, tokenizer, iter(enumerate(requests)), cache)
    yield from loop.admit()
    while loop.running:
        yield from loop.step()
        yield from loop.admit()


@dataclass
class _Sequence:
    """A request in its slot, and what was said so far."""

    number: int
    request: Request
    tokens: list[int]


@dataclass(frozen=True)
class _Loop:
    """The state that travels from step to step."""

    engine: Engine
    tokenizer: TokenizerFacts
    waiting: Iterator[tuple[int, Request]]
    cache: Cache
    running: dict[int, _Sequence] = field(default_factory=dict)  # by slot
    steppers: dict[int, Stepper] = field(default_factory=dict)  # by number of slots

    def admit(self) -> Iterator[tuple[int, int]]:
        """Prefill waiting requests into free slots; yield the first token of each."""
        for slot in range(self.cache.slots):
            while slot not in self.running and (entry := next(self.waiting, None)) is not None:
                sequence = _Sequence(*entry, [])
                self.running[slot] = sequence
                logits = self._prefill(slot, sequence.request)
                yield sequence.number, self._accept(slot, logits)

    def step(self) -> Iterator[tuple[int, int]]:
        """Append one token to every running sequence; yield the tokens."""
        slots = max(self.running) + 1
        if slots not in self.steppers:
            self.steppers[slots] = self.engine.stepper(self.cache, slots)
        start = time.perf_counter()
        last = [self.running[s].tokens[-1] if s in self.running else 0 for s in range(slots)]
        logits = self.steppers[slots].step(last)
        seconds = time.perf_counter() - start
        for slot, sequence in list(self.running.items()):
            sequence.request.watch.add("steps", seconds)
            yield sequence.number, self._accept(slot, logits[slot])

    def _prefill(self, slot: int, request: Request) -> NDArray[np.float32]:
        with request.watch.measure("vision"):
            hidden = self.engine.encode(request.pixel_values)
        with request.watch.measure("projector"):
            features = self.engine.project(hidden)
        with request.watch.measure("prefill"):
            return self.engine.prefill(self.cache, slot, features, request.ids)

    def _accept(self, slot: int, logits: NDArray[np.float32]) -> int:
        """Choose a slot's next token; an answer that is complete leaves its slot."""
        sequence = self.running[slot]
        # The rows from <image> on were never trained to be an answer.
        spoken = logits[: self.tokenizer.image_id]
        token = sequence.request.sampling.choose(spoken, len(sequence.tokens))
        sequence.tokens.append(token)
        full = len(sequence.tokens) == sequence.request.max_new_tokens
        if full or token == self.tokenizer.eos_id:
            del self.running[slot]
            self.cache.lengths[slot] = 0
        return token
