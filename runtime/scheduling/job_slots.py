"""The jobs that have slots: admitted, stepped together, told about, and ended.

Belongs to the engine thread. Knows nothing of the queue.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field

from paligemma_edge.runtime.device.run_stop import RunStop, RunStoppedError
from paligemma_edge.runtime.engine.kv_cache import KVCache
from paligemma_edge.runtime.errors import DeviceError
from paligemma_edge.runtime.generation.feature_cache import ImageFeatureCache
from paligemma_edge.runtime.generation.loop import FailedSequence, GeneratedToken, SlotLoop
from paligemma_edge.runtime.generation.pipeline import Pipeline
from paligemma_edge.runtime.generation.task_request import ChoiceRequest
from paligemma_edge.runtime.loading.loaded_model import LoadedModel
from paligemma_edge.runtime.scheduling.active_job import CUT_BY_DEADLINE, ActiveJob
from paligemma_edge.runtime.scheduling.errors import CancelledError
from paligemma_edge.runtime.scheduling.events import Event, Failed, Finished, Started
from paligemma_edge.runtime.scheduling.job import Job
from paligemma_edge.runtime.timing import Stopwatch

_LOG = logging.getLogger("paligemma_edge.scheduling")
_GONE = "the request was cancelled while it was answered"


@dataclass(eq=False)
class JobSlots:
    """Slots of a cache, and the jobs in them; all running ones use one adapter."""

    model: LoadedModel
    cache: KVCache
    slots: int
    running: dict[int, ActiveJob] = field(default_factory=dict)  # by the loop's number
    _loop: SlotLoop = field(init=False)
    _loops: dict[str | None, SlotLoop] = field(default_factory=dict)  # by adapter
    _numbers: itertools.count[int] = field(default_factory=itertools.count)
    adapter: str | None = None  # which answers at present

    def __post_init__(self) -> None:
        self._loop = self._loop_of(None)

    @property
    def has_free_slot(self) -> bool:
        """Whether a job can be admitted."""
        return self._loop.has_free_slot

    def admit(self, job: Job, queue_seconds: float, stop: RunStop) -> None:
        """Give a slot to a job: prefill its prompt and tell its first token, or score its choices.

        With jobs of another adapter running it must not be called. DeviceError where the device
        fails; the job's listener has been told then.
        """
        self._switch_to(job.adapter)
        tell(job, Started(queue_seconds))
        try:
            if isinstance(job.question, ChoiceRequest):
                self._score(job, job.question, queue_seconds, stop)
            else:
                self._begin(job, queue_seconds, stop)
        except RunStoppedError:
            tell(job, Failed(CancelledError(_GONE)))
        except Exception as error:
            tell(job, Failed(error))
            if isinstance(error, DeviceError):
                raise

    def step(self) -> None:
        """One more token for every running job; DeviceError where the device fails."""
        for generated in self._loop.step():
            active = self.running[generated.sequence.number]
            if isinstance(generated, FailedSequence):
                del self.running[generated.sequence.number]
                tell(active.job, Failed(generated.error))
            else:
                self._tell_token(active, generated)

    def cancel(self, jobs: Iterable[Job]) -> None:
        """End those of the jobs that are running."""
        wanted = set(jobs)
        for number, active in list(self.running.items()):
            if active.job in wanted:
                self._end(number, Failed(CancelledError(_GONE)))

    def cut_late(self) -> None:
        """End answers whose time is over; what there is of them is their answer."""
        for sequence in list(self._loop.running.values()):
            active = self.running[sequence.number]
            if active.is_late:
                self._end(sequence.number, *active.finish(sequence, (CUT_BY_DEADLINE,)))

    def fail_all(self, error: Exception) -> None:
        """End all running jobs with an error."""
        for number in list(self.running):
            self._end(number, Failed(error))

    def _switch_to(self, adapter: str | None) -> None:
        if adapter == self.adapter:
            return
        assert not self.running, "one adapter answers at a time"
        self.adapter, self._loop = adapter, self._loop_of(adapter)

    def _loop_of(self, adapter: str | None) -> SlotLoop:
        """The loop that answers with an adapter, with the features that it makes of images."""
        if adapter not in self._loops:
            pipeline, features = self._pipeline(adapter), None
            if adapter is not None and not pipeline.engine.adapts_images:
                features = self._loop_of(None).features
            self._loops[adapter] = pipeline.loop_in(
                self.cache, self.slots, features or ImageFeatureCache(pipeline.engine)
            )
        return self._loops[adapter]

    def _pipeline(self, adapter: str | None) -> Pipeline:
        return self.model.with_adapter(adapter)

    def _begin(self, job: Job, queue_seconds: float, stop: RunStop) -> None:
        assert not isinstance(job.question, ChoiceRequest)
        active = ActiveJob(job, job.question, self._pipeline(job.adapter), queue_seconds)
        number, request = next(self._numbers), job.question.request.about(job.images)
        generated = self._loop.admit(number, request, stop)
        if generated.finish_reason is None:
            self.running[number] = active
        self._tell_token(active, generated)

    def _score(
        self, job: Job, question: ChoiceRequest, queue_seconds: float, stop: RunStop
    ) -> None:
        watch, request, loop = Stopwatch(), question.request, self._loop
        features = loop.features.features(job.images, watch, stop)
        with loop.borrow_slot() as slot, watch.measure("prefill"):
            scores = self._pipeline(job.adapter).score_in_slot(
                self.cache, slot, request, features, choices=question.choices, stop=stop
            )
        finished = Finished(
            result=question.result(scores),
            generation=None,
            seconds=watch.seconds,
            queue_seconds=queue_seconds,
            prompt_tokens=request.length,
            image_tokens=request.length - len(request.ids),
            completion_tokens=0,
        )
        tell(job, finished)

    def _tell_token(self, active: ActiveJob, generated: GeneratedToken) -> None:
        ended = False
        try:
            for event in active.events(generated):
                ended = isinstance(event, Finished)
                tell(active.job, event)
        except Exception as error:  # of what its text becomes, such as masks
            ended = True
            tell(active.job, Failed(error))
        if ended:
            self._end(generated.sequence.number)

    def _end(self, number: int, *events: Event) -> None:
        """Give the slot of a job back, and tell its last events."""
        active = self.running.pop(number, None)
        self._loop.cancel(number)
        if active is not None:
            for event in events:
                tell(active.job, event)


def tell(job: Job, event: Event) -> None:
    """Call a listener; one that fails does not take the others' answers with it."""
    try:
        job.listener(event)
    except Exception:
        _LOG.exception("a listener failed")
