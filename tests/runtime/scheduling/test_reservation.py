"""Places in the queue: no more than may wait, each given back once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paligemma_edge.runtime.scheduling.errors import QueueFullError
from paligemma_edge.runtime.scheduling.reservation import QueueLimits, Reservations


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 60)), max_size=30))
def test_no_more_is_taken_than_the_limits_say(wanted: list[tuple[str, int]]) -> None:
    places = Reservations(QueueLimits(jobs=5, size=100, jobs_of_client=3))
    taken: list[tuple[str, int]] = []
    for client, size in wanted:
        held = [one for one, _ in taken]
        fits = (
            len(taken) < 5
            and (not taken or sum(size for _, size in taken) + size <= 100)
            and held.count(client) < 3
        )
        try:
            places.take(client, size)
        except QueueFullError as error:
            assert not fits
            assert error.of_client == (held.count(client) == 3 and len(taken) < 5) or not (
                sum(size for _, size in taken) + size <= 100
            )
        else:
            assert fits
            taken.append((client, size))
    assert places.taken == len(taken)


def test_a_place_is_given_back_once() -> None:
    places = Reservations(QueueLimits(jobs=2, size=10))
    with places.take("a", 10) as first:
        with pytest.raises(QueueFullError, match="images of 10 B are waiting"):
            places.take("b", 1)
        first.close()
    places.take("a", 5)
    places.take("a", 5)
    with pytest.raises(QueueFullError, match="2 requests are waiting"):
        places.take("b", 0)


def test_what_is_larger_than_the_queue_is_taken_alone() -> None:
    places = Reservations(QueueLimits(size=10))
    with places.take("a", 1000), pytest.raises(QueueFullError):
        places.take("a", 1)
