"""The loop: requests wait, take a slot, are prefilled, step together and leave.

Speaks token ids only. A slot that ends is taken by the next request between two steps, so a
batch is never padded and never waits for its longest answer.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from paligemma_edge.runtime.engine.engine import Engine
from paligemma_edge.runtime.engine.kv_cache import KVCache
from paligemma_edge.runtime.engine.logits import Row
from paligemma_edge.runtime.generation.sampling import Sampling
from paligemma_edge.runtime.generation.select_token import choose
from paligemma_edge.runtime.grammar.base import State
from paligemma_edge.runtime.manifest import TokenizerConfig
from paligemma_edge.runtime.timing import Stopwatch

if TYPE_CHECKING:
    import onnxruntime as ort


@dataclass(frozen=True)
class Request:
    """Features [images, N, hidden], the ids of a prompt, and how to answer.

    `state` is the start of a grammar, None where anything may be said.
    """

    image_features: ort.OrtValue
    ids: tuple[int, ...]
    max_new_tokens: int
    sampling: Sampling
    state: State | None = None
    watch: Stopwatch = field(default_factory=Stopwatch)


class GeneratedToken(NamedTuple):
    """A token of the answer to the request of a number, and the model's log-probability for it."""

    number: int
    token: int
    log_prob: float


def generate(
    engine: Engine,
    tokenizer: TokenizerConfig,
    requests: Iterable[Request],
    cache: KVCache,
    slots: int | None = None,
) -> Iterator[GeneratedToken]:
    """Answer requests in the first `slots` slots of a cache, or all; yield tokens as they come.

    The end-of-sequence token is yielded too, last of an answer that ended by itself. `requests`
    is read only as slots become free.
    """
    loop = _Loop(engine, tokenizer, iter(enumerate(requests)), cache, slots or cache.slots)
    yield from loop.admit()
    while loop.running:
        yield from loop.step()
        yield from loop.admit()


@dataclass
class _Sequence:
    """A request in its slot, and what was said so far."""

    number: int
    request: Request
    state: State | None
    tokens: list[int]

    def choose(self, row: Row) -> int:
        """Choose and keep the next token."""
        allowed = None if self.state is None else self.state.allowed
        token = choose(self.request.sampling, row, allowed, len(self.tokens))
        if self.state is not None:
            self.state = self.state.after(token)
        self.tokens.append(token)
        return token


@dataclass(frozen=True)
class _Loop:
    """The state that travels from step to step."""

    engine: Engine
    tokenizer: TokenizerConfig
    waiting: Iterator[tuple[int, Request]]
    cache: KVCache
    slots: int
    running: dict[int, _Sequence] = field(default_factory=dict)  # by slot

    def admit(self) -> Iterator[GeneratedToken]:
        """Prefill waiting requests into free slots; yield the first token of each."""
        for slot in range(self.slots):
            while slot not in self.running and (entry := next(self.waiting, None)) is not None:
                number, request = entry
                self.running[slot] = _Sequence(number, request, request.state, [])
                with request.watch.measure("prefill"):
                    row = self.engine.prefill(self.cache, slot, request.image_features, request.ids)
                yield self._accept(slot, row)

    def step(self) -> Iterator[GeneratedToken]:
        """Append one token to every running sequence; yield the tokens."""
        slots = max(self.running) + 1
        stepper = self.engine.stepper(self.cache, slots)
        start = time.perf_counter()
        last = [self.running[s].tokens[-1] if s in self.running else 0 for s in range(slots)]
        logits = stepper.step(last)
        seconds = time.perf_counter() - start
        for slot, sequence in list(self.running.items()):
            sequence.request.watch.add("steps", seconds)
            yield self._accept(slot, logits[slot])

    def _accept(self, slot: int, row: Row) -> GeneratedToken:
        """Choose a slot's next token; an answer that is complete leaves its slot."""
        sequence = self.running[slot]
        token = sequence.choose(row)
        full = len(sequence.tokens) == sequence.request.max_new_tokens
        if full or token == self.tokenizer.eos_id:
            del self.running[slot]
            self.cache.lengths[slot] = 0
        return GeneratedToken(sequence.number, token, row.log_prob(token))
