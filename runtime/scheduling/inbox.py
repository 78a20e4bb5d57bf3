"""Where clients' threads and the engine thread meet: jobs that wait, and those that were cancelled.

Everything in it is under one lock, which nobody holds while something is computed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from paligemma_edge.runtime.scheduling.errors import (
    CancelledError,
    ClosingError,
    NotAnsweredError,
    QueueTimeoutError,
    SupersededError,
)
from paligemma_edge.runtime.scheduling.job import Job
from paligemma_edge.runtime.scheduling.reservation import QueueLimits, Reservation, Reservations
from paligemma_edge.runtime.scheduling.waiting import WaitingJob, WaitingJobs

CLOSING = "the server is stopping and takes no more requests; ask it again when it has started"


@dataclass(frozen=True)
class GivenUp:
    """A job that waited, and why it is not answered."""

    job: Job
    error: NotAnsweredError


@dataclass(eq=False)
class Inbox:
    """Jobs on their way to the engine thread."""

    limits: QueueLimits
    _places: Reservations = field(init=False)
    _waiting: WaitingJobs = field(default_factory=WaitingJobs)
    _given_up: list[GivenUp] = field(default_factory=list)
    _cancelled: set[Job] = field(default_factory=set)
    _closing: bool = False
    _woken: bool = False
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def __post_init__(self) -> None:
        self._places = Reservations(self.limits)

    @property
    def waiting(self) -> int:
        """Jobs that wait for a slot, or whose images are being read for it."""
        return self._places.taken

    def reserve(self, client: str, size: int) -> Reservation:
        """A place for a job of so many bytes; QueueFullError, or ClosingError."""
        if self._closing:
            raise ClosingError(CLOSING)
        return self._places.take(client, size)

    def put(self, job: Job, reservation: Reservation) -> None:
        """Let a job wait in the place that was reserved; those that it supersedes are given up."""
        with self._changed:
            if job.supersede is not None:
                error = SupersededError("a newer request took the place of this one")
                self._give_up(lambda other: _supersedes(job, other.job), error)
            self._waiting.add(WaitingJob(job, reservation, time.monotonic()))
            self._changed.notify_all()

    def cancel(self, job: Job) -> None:
        """Say that nobody waits for a job any more, whether it waits or runs."""
        with self._changed:
            self._cancelled.add(job)
            self._changed.notify_all()

    def is_cancelled(self, job: Job) -> bool:
        """Whether nobody waits for it any more."""
        with self._changed:
            return job in self._cancelled

    def close(self) -> None:
        """Take no more reservations; what has one may still come."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def wake(self) -> None:
        """End a wait."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def wait(self, seconds: float) -> None:
        """Wait until something has changed, or so long."""
        with self._changed:
            if not (len(self._waiting) or self._given_up or self._cancelled or self._woken):
                self._changed.wait(seconds)
            self._woken = False

    def take(self, adapter: str | None, *, any_adapter: bool) -> WaitingJob | None:
        """The job whose turn it is, see `WaitingJobs.take`."""
        with self._changed:
            return self._waiting.take(time.monotonic(), adapter, any_adapter=any_adapter)

    def take_given_up(self) -> list[GivenUp]:
        """Jobs that waited and will not be answered: too late, cancelled, superseded."""
        now = time.monotonic()
        late = QueueTimeoutError("the time limit passed while the request waited for its turn")
        gone = CancelledError("the request was cancelled while it waited")
        with self._changed:
            self._give_up(lambda waiting: waiting.job.deadline < now, late)
            self._give_up(lambda waiting: waiting.job in self._cancelled, gone)
            given_up, self._given_up = self._given_up, []
            self._cancelled.difference_update(one.job for one in given_up)
            return given_up

    def take_cancelled(self) -> set[Job]:
        """Jobs that nobody waits for and that have a slot, or had one."""
        with self._changed:
            taken = {job for job in self._cancelled if not self._waiting.holds(job)}
            self._cancelled -= taken
            return taken

    def take_all(self, error: NotAnsweredError) -> list[GivenUp]:
        """Give up all that waits."""
        with self._changed:
            self._give_up(lambda _: True, error)
            given_up, self._given_up = self._given_up, []
            return given_up

    def _give_up(self, unwanted: Callable[[WaitingJob], bool], error: NotAnsweredError) -> None:
        for waiting in self._waiting.remove(unwanted):
            waiting.reservation.close()
            self._given_up.append(GivenUp(waiting.job, error))


def _supersedes(job: Job, older: Job) -> bool:
    if job.request_id and older.request_id == job.request_id:
        return False
    return (older.client, older.supersede) == (job.client, job.supersede)
