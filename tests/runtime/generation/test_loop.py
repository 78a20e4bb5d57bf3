"""The loop over a model that counts down: a prompt `[n]` is answered `n, n - 1, ..., 1`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from paligemma_edge.runtime.device.memory import DeviceMemory
from paligemma_edge.runtime.engine.kv_cache import KVCache
from paligemma_edge.runtime.engine.logits import HostOutputs, HostRow
from paligemma_edge.runtime.generation.loop import GeneratedToken, SlotLoop, generate
from paligemma_edge.runtime.generation.request import Request
from paligemma_edge.runtime.generation.sampling import Greedy
from paligemma_edge.runtime.timing import Stopwatch

EOS, LONGEST, IMAGE, VOCAB = 1, 29, 1156, 1160
LOCATIONS = range(10, 15)


def _row(token: int) -> NDArray[np.float32]:
    logits = np.zeros(VOCAB, np.float32)
    logits[token] = 1
    logits[IMAGE:] = 9  # rows that are no answer, however likely
    return logits


@dataclass
class Countdown:
    """A feature cache and an engine in one; counts what it is asked to do."""

    read: list[int] = field(default_factory=list)
    steps: list[list[int]] = field(default_factory=list)

    def features(self, images: int, watch: Stopwatch, stop: None) -> int:
        watch.add("vision", 1)
        return images

    def prefill(
        self, cache: KVCache, slot: int, images: int, ids: Sequence[int], stop: None
    ) -> HostRow:
        assert cache.lengths[slot] == 0, "the slot is still taken"
        cache.lengths[slot] = images + len(ids)
        self.read.append(ids[0])
        return HostRow(_row(ids[0]), IMAGE)

    def stepper(self, cache: KVCache, slots: int) -> Countdown:
        return self

    def step(self, tokens: Sequence[int]) -> HostOutputs:
        self.steps.append(list(tokens))
        rows = np.stack([_row(max(t - 1, 0)) for t in tokens])
        return HostOutputs(rows[:, None], IMAGE)


def _cache(slots: int) -> KVCache:
    anything = cast(Any, None)
    lengths = np.zeros(slots, np.int32)
    return KVCache(DeviceMemory(), anything, "float32", 0, (1, 64, 1), lengths, anything)


def _requests(counts: Sequence[int], limit: int) -> list[Request]:
    one: Any = lambda watch: 1  # noqa: E731 - what images are does not matter to the loop
    return [Request("", (count,), 2, limit, Greedy(), images=one) for count in counts]


def _answers(
    counts: Sequence[int], slots: int, limit: int = 99, engine: Countdown | None = None
) -> list[list[int]]:
    engine = engine or Countdown()
    answers: list[list[int]] = [[] for _ in counts]
    cache = _cache(slots)
    for generated in _run(engine, _requests(counts, limit), cache):
        answers[generated.sequence.number].append(generated.token)
    assert not cache.lengths.any(), "a slot was not given back"
    return answers


def _run(
    engine: Countdown,
    requests: Any,  # noqa: ANN401
    cache: KVCache,
    eos_ids: Sequence[int] = (EOS,),
) -> Iterator[GeneratedToken]:
    model = cast(Any, engine)
    return generate(SlotLoop(model, model, cache, cache.slots, eos_ids, LOCATIONS), requests)


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


def test_free_slots_after_the_last_running_one_are_not_run() -> None:
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


def test_each_answer_has_its_seconds() -> None:
    generated = list(_run(Countdown(), _requests([3, 4], 99), _cache(1)))
    for sequence in {id(g.sequence): g.sequence for g in generated}.values():
        assert set(sequence.watch.seconds) == {"vision", "prefill", "steps"}


def test_an_answer_ends_by_itself_or_by_its_limit_and_only_its_last_token_says_so() -> None:
    stopped = [g.finish_reason for g in _run(Countdown(), _requests([3], 99), _cache(1))]
    assert stopped == [None, None, "stop"]
    cut = [g.finish_reason for g in _run(Countdown(), _requests([3], 2), _cache(1))]
    assert cut == [None, "length"]
    both = [g.finish_reason for g in _run(Countdown(), _requests([3], 3), _cache(1))]
    assert both == [None, None, "stop"]  # it had ended anyway


def test_any_of_several_ends_ends_an_answer() -> None:
    tokens: list[list[int]] = [[], [], []]
    for generated in _run(Countdown(), _requests([9, 4, 20], 99), _cache(2), eos_ids=(EOS, 4, 18)):
        tokens[generated.sequence.number].append(generated.token)
        assert (generated.finish_reason == "stop") == (generated.token in (EOS, 4, 18))
    assert tokens == [[9, 8, 7, 6, 5, 4], [4], [20, 19, 18]]


def test_each_token_has_the_log_probability_that_the_model_gave_it() -> None:
    for _, token, log_prob, _ in _run(Countdown(), _requests([3], 99), _cache(1)):
        row = _row(token)[:IMAGE].astype(np.float64)
        assert log_prob == pytest.approx(np.log(np.exp(row) / np.exp(row).sum())[token])


@dataclass(frozen=True)
class Multiples:
    """A grammar: the n-th token is a multiple of n, and 1 ends an answer."""

    place: int = 1

    @property
    def allowed(self) -> NDArray[np.intp]:
        return np.union1d([EOS], np.arange(0, IMAGE, self.place)[1:])

    def after(self, token: int) -> Multiples:
        assert token in self.allowed
        return Multiples(self.place + 1)


def test_a_grammar_lets_only_its_tokens_pass_and_scores_stay_those_of_the_model() -> None:
    (request,) = _requests([9], 99)
    answer = list(_run(Countdown(), [replace(request, state=Multiples())], _cache(1)))
    # The model wants 9, 8, 7 ...; what is not allowed all have a logit of 0, the first is taken.
    assert [generated.token for generated in answer] == [9, 8, EOS]
    last = _row(7)[:IMAGE].astype(np.float64)
    assert answer[-1].log_prob == pytest.approx(-np.log(np.exp(last).sum()))


def test_requests_of_one_batch_have_grammars_of_their_own() -> None:
    free, bound = _requests([9, 9], 99)
    answers: list[list[int]] = [[], []]
    requests = [free, replace(bound, state=Multiples())]
    for generated in _run(Countdown(), requests, _cache(2)):
        answers[generated.sequence.number].append(generated.token)
    assert answers == [list(range(9, 0, -1)), [9, 8, EOS]]


def test_where_a_box_begins_it_is_noted_how_likely_any_box_was() -> None:
    (*_, last) = _run(Countdown(), _requests([20], 99), _cache(1))
    tokens, noted = last.sequence.tokens, last.sequence.box_log_probs
    assert [tokens[place] for place in noted] == [14, 10]  # after four corners another box begins
    for place, log_prob in noted.items():
        weights = np.exp(_row(tokens[place])[:IMAGE].astype(np.float64))
        assert log_prob == pytest.approx(np.log(weights[10:15].sum() / weights.sum()))
        assert log_prob > last.sequence.log_probs[place]


def test_boxes_are_noted_of_each_answer_of_a_batch() -> None:
    ended = [g for g in _run(Countdown(), _requests([12, 9, 14], 99), _cache(2)) if g.finish_reason]
    noted = {g.sequence.number: set(g.sequence.box_log_probs) for g in ended}
    assert noted == {0: {0}, 1: set(), 2: {0, 4}}
