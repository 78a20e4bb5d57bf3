"""The loop over a model that counts down: a prompt `[n]` is answered `n, n - 1, ..., 1`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from paligemma_edge.runtime.cache import Cache
from paligemma_edge.runtime.contract import TokenizerFacts
from paligemma_edge.runtime.engine import Engine
from paligemma_edge.runtime.generate import Request, generate
from paligemma_edge.runtime.sampling import Greedy

EOS, LONGEST, IMAGE, VOCAB = 1, 29, 1156, 1160
TOKENIZER = TokenizerFacts(
    file="",
    pad_id=0,
    eos_id=EOS,
    bos_id=2,
    newline_id=3,
    first_loc_id=4,
    first_seg_id=1028,
    image_id=IMAGE,
)


def _row(token: int) -> NDArray[np.float32]:
    logits = np.zeros(VOCAB, np.float32)
    logits[token] = 1
    logits[IMAGE:] = 9  # rows that are no answer, however likely
    return logits


@dataclass
class Countdown:
    """Counts what it is asked to do."""

    read: list[int] = field(default_factory=list)
    steps: list[list[int]] = field(default_factory=list)

    def encode(self, pixel_values: NDArray[np.float32]) -> int:
        return len(pixel_values)

    def project(self, pictures: int) -> int:
        return pictures

    def prefill(
        self, cache: Cache, slot: int, pictures: int, ids: Sequence[int]
    ) -> NDArray[np.float32]:
        assert cache.lengths[slot] == 0, "the slot is still taken"
        cache.lengths[slot] = pictures + len(ids)
        self.read.append(ids[0])
        return _row(ids[0])

    def stepper(self, cache: Cache, slots: int) -> Countdown:
        return self

    def step(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        self.steps.append(list(tokens))
        return np.stack([_row(max(t - 1, 0)) for t in tokens])


def _cache(slots: int) -> Cache:
    return Cache((), np.zeros(slots, np.int32), (1, 64, 1))


def _requests(counts: Sequence[int], limit: int) -> list[Request]:
    pixels = np.zeros((1, 3, 2, 2), np.float32)
    return [Request(pixels, (count,), limit, Greedy()) for count in counts]


def _answers(
    counts: Sequence[int], slots: int, limit: int = 99, engine: Countdown | None = None
) -> list[list[int]]:
    engine = engine or Countdown()
    answers: list[list[int]] = [[] for _ in counts]
    cache = _cache(slots)
    for number, token in _run(engine, _requests(counts, limit), cache):
        answers[number].append(token)
    assert not cache.lengths.any(), "a slot was not given back"
    return answers


def _run(engine: Countdown, requests: Any, cache: Cache) -> Iterator[tuple[int, int]]:  # noqa: ANN401
    return generate(cast(Engine, engine), TOKENIZER, requests, cache)


@given(
    counts=st.lists(st.integers(EOS, LONGEST), max_size=12),
    slots=st.integers(1, 5),
    limit=st.integers(1, 40),
)
def test_every_request_gets_its_own_answer(counts: list[int], slots: int, limit: int) -> None:
    expected = [list(range(n, EOS - 1, -1))[:limit] for n in counts]
    assert _answers(counts, slots, limit) == expected


def test_a_slot_that_ends_is_taken_between_two_steps() -> None:
    engine = Countdown()
    _answers([2, 9, 5], slots=2, engine=engine)
    assert engine.steps[:2] == [[2, 9], [5, 8]]  # request 0 ended, request 2 sits in its slot


def test_free_slots_behind_the_last_running_one_are_not_run() -> None:
    engine = Countdown()
    _answers([9, 2], slots=2, engine=engine)
    assert [len(tokens) for tokens in engine.steps[:3]] == [2, 1, 1]


def test_an_answer_of_one_token_needs_no_step() -> None:
    engine = Countdown()
    assert _answers([EOS, 7], slots=1, limit=1, engine=engine) == [[EOS], [7]]
    assert engine.steps == []


def test_requests_are_read_only_as_slots_become_free() -> None:
    engine, taken = Countdown(), []

    def requests() -> Iterator[Request]:
        for request in _requests([5, 5, 5], 99):
            taken.append(request)
            yield request

    stream = _run(engine, requests(), _cache(1))
    next(stream)
    assert len(taken) == 1


def test_each_answer_knows_its_times() -> None:
    requests = _requests([3, 4], 99)
    list(_run(Countdown(), requests, _cache(1)))
    for request in requests:
        assert set(request.watch.seconds) == {"vision", "projector", "prefill", "steps"}
