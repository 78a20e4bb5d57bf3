"""The jobs that wait, and whose turn it is.

Clients take turns, each with its oldest job. One adapter answers at a time: jobs of another wait
until the running answers end, and when one of them has waited long, no more of the current are
taken. Knows nothing of threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from paligemma_edge.runtime.scheduling.job import Job
from paligemma_edge.runtime.scheduling.reservation import Reservation

PATIENCE = 2.0  # seconds that a job waits for those of another adapter


@dataclass(eq=False)
class WaitingJob:
    """A job in the queue, since when, and the place that it takes."""

    job: Job
    reservation: Reservation
    arrived: float


@dataclass(frozen=True, eq=False)
class WaitingJobs:
    """Jobs by client; the client whose turn it is comes first."""

    _clients: dict[str, deque[WaitingJob]] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(map(len, self._clients.values()))

    def add(self, waiting: WaitingJob) -> None:
        """Put a job behind the others of its client."""
        self._clients.setdefault(waiting.job.client, deque()).append(waiting)

    def take(self, now: float, adapter: str | None, *, any_adapter: bool) -> WaitingJob | None:
        """The job whose turn it is, None where none may start now.

        With `any_adapter` it may be of any, else of `adapter` alone, which answers at present.
        """
        if not any_adapter and self._others_have_waited(now, adapter):
            return None
        for client, jobs in self._clients.items():
            for place, waiting in enumerate(jobs):
                if any_adapter or waiting.job.adapter == adapter:
                    del jobs[place]
                    self._end_turn(client)
                    return waiting
        return None

    def remove(self, unwanted: Callable[[WaitingJob], bool]) -> list[WaitingJob]:
        """Take out all jobs that are unwanted."""
        removed = []
        for client, jobs in list(self._clients.items()):
            removed += [waiting for waiting in jobs if unwanted(waiting)]
            kept = deque(waiting for waiting in jobs if not unwanted(waiting))
            self._replace(client, kept)
        return removed

    def holds(self, job: Job) -> bool:
        """Whether a job is among them."""
        return any(waiting.job is job for waiting in self._clients.get(job.client, ()))

    def _others_have_waited(self, now: float, adapter: str | None) -> bool:
        return any(
            waiting.job.adapter != adapter and now - waiting.arrived > PATIENCE
            for jobs in self._clients.values()
            for waiting in jobs
        )

    def _end_turn(self, client: str) -> None:
        jobs = self._clients.pop(client)
        if jobs:
            self._clients[client] = jobs  # behind all others

    def _replace(self, client: str, jobs: deque[WaitingJob]) -> None:
        if jobs:
            self._clients[client] = jobs
        else:
            del self._clients[client]
