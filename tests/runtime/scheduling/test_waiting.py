"""Whose turn it is: clients in turn, one adapter at a time, nobody for ever."""

from __future__ import annotations

from collections import Counter
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from paligemma_edge.runtime.scheduling.job import Job
from paligemma_edge.runtime.scheduling.waiting import PATIENCE, WaitingJob, WaitingJobs

NOTHING = cast(Any, None)


def waiting(client: str, adapter: str | None = None, arrived: float = 0) -> WaitingJob:
    job = Job(
        question=NOTHING,
        images=NOTHING,
        listener=NOTHING,
        deadline=0,
        adapter=adapter,
        client=client,
    )
    return WaitingJob(job, NOTHING, arrived)


def queue(*jobs: WaitingJob) -> WaitingJobs:
    queued = WaitingJobs()
    for job in jobs:
        queued.add(job)
    return queued


def turns(queued: WaitingJobs) -> list[WaitingJob]:
    taken = []
    while (job := queued.take(0, None, any_adapter=True)) is not None:
        taken.append(job)
    return taken


@given(st.lists(st.sampled_from("abc"), max_size=20))
def test_no_client_waits_longer_than_a_round(clients: list[str]) -> None:
    jobs = [waiting(client) for client in clients]
    taken = turns(queue(*jobs))
    assert set(map(id, taken)) == set(map(id, jobs))
    left = Counter(clients)
    rounds: list[str] = []
    for job in taken:
        client = job.job.client
        if client in rounds:  # a new round begins once everyone who has jobs had a turn
            assert all(left[other] == 0 or other in rounds for other in left)
            rounds.clear()
        rounds.append(client)
        left[client] -= 1
    for client in "abc":
        assert [j for j in taken if j.job.client == client] == [
            j for j in jobs if j.job.client == client
        ]


def test_while_one_adapter_answers_no_other_is_taken() -> None:
    queued = queue(waiting("a", "cats"), waiting("a"), waiting("b"))
    taken = [queued.take(0, None, any_adapter=False) for _ in range(3)]
    assert [job and job.job.adapter for job in taken] == [None, None, None]
    assert taken[2] is None
    assert len(queued) == 1


def test_who_waited_long_for_another_adapter_ends_the_turn_of_this_one() -> None:
    queued = queue(waiting("a", "cats", arrived=1), waiting("b", arrived=1))
    assert queued.take(1 + PATIENCE + 0.1, None, any_adapter=False) is None
    first = queued.take(1 + PATIENCE + 0.1, None, any_adapter=True)
    assert first is not None
    assert first.job.adapter == "cats"


def test_jobs_that_are_removed_are_not_taken() -> None:
    kept, gone = waiting("a"), waiting("a", "cats")
    queued = queue(kept, gone)
    assert queued.remove(lambda job: job is gone) == [gone]
    assert not queued.holds(gone.job)
    assert queued.holds(kept.job)
    assert turns(queued) == [kept]
