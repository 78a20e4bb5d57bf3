"""One thread owns the graphs and answers the jobs of all clients, several at a time.

Each turn it gives up what nobody waits for any more, prefills a job that waits into a free slot,
lets all running answers take a step, and tells their listeners. The slots are those of the loop
that `generate_batch` uses.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from paligemma_edge.runtime.device.run_stop import RunStop
from paligemma_edge.runtime.engine.cache_plan import CachePlan
from paligemma_edge.runtime.engine.kv_cache import KVCache
from paligemma_edge.runtime.errors import DeviceError, OptionError
from paligemma_edge.runtime.loading.loaded_model import LoadedModel
from paligemma_edge.runtime.scheduling.errors import ClosingError
from paligemma_edge.runtime.scheduling.events import Failed
from paligemma_edge.runtime.scheduling.inbox import CLOSING, GivenUp, Inbox
from paligemma_edge.runtime.scheduling.job import Job
from paligemma_edge.runtime.scheduling.job_slots import JobSlots, tell
from paligemma_edge.runtime.scheduling.reservation import QueueLimits, Reservation
from paligemma_edge.runtime.scheduling.waiting import WaitingJob

_LOG = logging.getLogger("paligemma_edge.scheduling")
_IDLE_SECONDS = 1.0  # between two signs of life while nothing is asked
_MOST_FAILURES = 3  # of the device in a row, after which it is not trusted any more


@dataclass(frozen=True, kw_only=True)
class SchedulerLimits:
    """What a scheduler takes on.

    Args:
        queue: what may wait.
        steps_between_prefills: steps that running answers take before another job is prefilled. A
            prefill takes as long as many steps, so it makes all running answers wait.
    """

    queue: QueueLimits = field(default_factory=QueueLimits)
    steps_between_prefills: int = 1


class Scheduler:
    """Answers jobs with a model that was opened with a plan of its slots.

    Any thread may submit and cancel; listeners are called by the engine thread.

    Args:
        model: it belongs to the scheduler from `start` to `close`.
        limits: what the scheduler takes on.
        on_beat: called by the engine thread after each turn, and each second while it is idle.

    Raises:
        OptionError: the model was opened without `max_batch_size` and `max_length`.

    Example:
        >>> scheduler = Scheduler(load_model("mix.bundle", max_batch_size=4), SchedulerLimits())
        >>> scheduler.start()
        >>> scheduler.submit(job, scheduler.reserve("somebody", size=0))
    """

    def __init__(
        self,
        model: LoadedModel,
        limits: SchedulerLimits,
        on_beat: Callable[[], None] = lambda: None,
    ) -> None:
        self.model, self._limits, self._on_beat = model, limits, on_beat
        self._plan = _plan_of(model)
        self._inbox = Inbox(limits.queue)
        self._slots: JobSlots | None = None
        self._admitting: tuple[Job, RunStop] | None = None
        self._steps = limits.steps_between_prefills  # since the last prefill
        self._failures = 0  # of the device, in a row
        self._failure: Exception | None = None
        self._closed = False
        self._idle = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def slots(self) -> int:
        """Answers that can be generated at a time."""
        return self._plan.max_batch_size

    @property
    def max_length(self) -> int:
        """Tokens of images, prompt and answer together."""
        return self._plan.max_length

    @property
    def running(self) -> int:
        """Jobs that have a slot."""
        active = len(self._slots.running) if self._slots is not None else 0
        return active + (self._admitting is not None)

    @property
    def waiting(self) -> int:
        """Jobs that wait for a slot, or whose images are being read for it."""
        return self._inbox.waiting

    @property
    def failure(self) -> Exception | None:
        """Why the engine thread ended by itself; None while it works."""
        return self._failure

    def start(self) -> None:
        """Load all adapters, so that no answer waits for one, and start the engine thread.

        BundleError where an adapter is damaged.
        """
        for name in self.model.adapters.names:
            self.model.with_adapter(name)
        self._thread.start()

    def reserve(self, client: str, size: int) -> Reservation:
        """A place in the queue, before images are read.

        Args:
            client: whose job it will be.
            size: bytes of its images.

        Raises:
            QueueFullError: as much is waiting as may.
            ClosingError: the scheduler was drained or closed, or the device failed for good.
        """
        return self._inbox.reserve(client, size)

    def submit(self, job: Job, reservation: Reservation) -> None:
        """Let a job wait; its listener is told all else. The place is given back by itself."""
        self._inbox.put(job, reservation)

    def cancel(self, job: Job) -> None:
        """Give a job up: at once while it waits or is prefilled, within a step while it runs."""
        self._inbox.cancel(job)
        admitting = self._admitting
        if admitting is not None and admitting[0] is job:
            admitting[1].press()

    def drain(self, seconds: float) -> bool:
        """Take no more jobs and let the others end.

        Args:
            seconds: how long to wait for them.

        Returns:
            Whether all have ended.
        """
        self._inbox.close()
        deadline = time.monotonic() + seconds
        while self.waiting or self.running:
            self._idle.clear()
            if self._failure is not None or not self._idle.wait(deadline - time.monotonic()):
                return False
        return True

    def close(self) -> None:
        """End the engine thread; jobs that are left fail with ClosingError."""
        self._inbox.close()
        self._closed = True
        self._inbox.wake()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        """The life of the engine thread."""
        pool, plan = self.model.pipeline.cache_pool, self._plan
        try:
            with pool.acquire(plan.max_batch_size, plan.max_length) as cache:
                self._answer_in(cache)
        except Exception as error:
            _LOG.error("the engine stopped", exc_info=not isinstance(error, DeviceError))
            self._failure = error
        finally:
            self._inbox.close()
            self._give_up(self._inbox.take_all(ClosingError(CLOSING)))
            if self._slots is not None:
                self._slots.fail_all(self._failure or ClosingError(CLOSING))
            self._idle.set()
            self._on_beat()

    def _answer_in(self, cache: KVCache) -> None:
        slots = self._slots = JobSlots(self.model, cache, self._plan.max_batch_size)
        while not self._closed:
            if not slots.running:
                self._idle.set()
                self._inbox.wait(_IDLE_SECONDS)
            self._turn(slots)
            self._on_beat()

    def _turn(self, slots: JobSlots) -> None:
        self._give_up(self._inbox.take_given_up())
        while self._may_prefill(slots) and (waiting := self._next(slots)) is not None:
            self._admit(slots, waiting)
        slots.cancel(self._inbox.take_cancelled())
        slots.cut_late()
        if slots.running:
            self._step(slots)

    def _may_prefill(self, slots: JobSlots) -> bool:
        """Whether a job may be prefilled now, which makes all running answers wait."""
        rested = self._steps >= self._limits.steps_between_prefills
        return slots.has_free_slot and (rested or not slots.running)

    def _next(self, slots: JobSlots) -> WaitingJob | None:
        return self._inbox.take(slots.adapter, any_adapter=not slots.running)

    def _admit(self, slots: JobSlots, waiting: WaitingJob) -> None:
        job, stop = waiting.job, RunStop()
        self._admitting = job, stop
        waiting.reservation.close()
        if self._inbox.is_cancelled(job):  # before there was something to stop
            stop.press()
        self._steps = 0
        try:
            slots.admit(job, time.monotonic() - waiting.arrived, stop)
        except DeviceError as error:
            self._count_failure(error)
        finally:
            self._admitting = None

    def _step(self, slots: JobSlots) -> None:
        try:
            slots.step()
        except DeviceError as error:
            slots.fail_all(error)
            self._count_failure(error)
        else:
            self._failures = 0
        self._steps += 1

    def _count_failure(self, error: DeviceError) -> None:
        """Raise an error of the device when it failed again and again."""
        self._failures += 1
        if self._failures >= _MOST_FAILURES:
            raise error

    def _give_up(self, jobs: list[GivenUp]) -> None:
        for one in jobs:
            tell(one.job, Failed(one.error))


def _plan_of(model: LoadedModel) -> CachePlan:
    plan = model.pipeline.cache_pool.plan
    if plan is None:
        raise OptionError(
            "the model was opened without a plan of its slots; open it with max_batch_size"
        )
    return plan
