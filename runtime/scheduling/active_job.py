"""A job that has a slot: its tokens become text and objects, and in the end its result.

Knows one job. Knows nothing of the queue, of slots or of threads.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from paligemma_edge.runtime.generation.loop import ActiveSequence, GeneratedToken
from paligemma_edge.runtime.generation.pipeline import Pipeline
from paligemma_edge.runtime.generation.task_request import TaskRequest
from paligemma_edge.runtime.results.generation import Generation
from paligemma_edge.runtime.results.result import ObjectResult, TextResult
from paligemma_edge.runtime.scheduling.events import Event, Finished, ObjectFound, TokenGenerated
from paligemma_edge.runtime.scheduling.job import Job
from paligemma_edge.runtime.scheduling.stop_texts import StopTexts
from paligemma_edge.runtime.text.tokenizer import TextStream

CUT_BY_DEADLINE = "the answer was cut, since its time limit passed while it was generated"


@dataclass(eq=False)
class ActiveJob:
    """A job in its slot, and what was told of its answer so far."""

    job: Job
    asked: TaskRequest[TextResult] | TaskRequest[ObjectResult]
    pipeline: Pipeline
    queue_seconds: float
    text: TextStream = field(init=False)
    stop_texts: StopTexts = field(init=False)
    objects: int = 0  # that were told

    def __post_init__(self) -> None:
        self.text = TextStream(self.pipeline.encoder)
        self.stop_texts = StopTexts(self.job.stop)

    @property
    def is_late(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return time.monotonic() > self.job.deadline

    def events(self, generated: GeneratedToken) -> Iterator[Event]:
        """What a new token makes known. `Finished` is the last event of an answer that ended."""
        ended = generated.finish_reason is not None
        piece = self.text.push(generated.token) + (self.text.finish() if ended else "")
        certain = self.stop_texts.push(piece, ended=ended)
        sequence = generated.sequence
        top = sequence.top_log_probs[-1] if sequence.top_log_probs else ()
        yield TokenGenerated(certain, generated.token, generated.log_prob, top)
        if self.stop_texts.found or ended:
            yield from self.finish(sequence)
        elif self.job.stream_objects and ";" in piece:
            yield from self._new_objects(self._result(sequence))

    def finish(self, sequence: ActiveSequence, notes: tuple[str, ...] = ()) -> Iterator[Event]:
        """The end of an answer, or of as much of it as there is."""
        result = self._result(sequence)
        if self.job.stream_objects:
            yield from self._new_objects(result)
        request = self.asked.request
        yield Finished(
            result=result,
            generation=self._generation(sequence),
            seconds=sequence.watch.seconds,
            queue_seconds=self.queue_seconds,
            prompt_tokens=request.length,
            image_tokens=request.length - len(request.ids),
            completion_tokens=len(sequence.tokens),
            notes=notes,
        )

    def _result(self, sequence: ActiveSequence) -> TextResult | ObjectResult:
        images = self.job.images
        size = (images.width, images.height)
        return self.asked.build(self._generation(sequence), size, None)

    def _generation(self, sequence: ActiveSequence) -> Generation:
        """The answer so far, without a stop text and what follows it."""
        generation = self.pipeline.generation(sequence)
        if not self.stop_texts.found:
            return generation
        return dataclasses.replace(generation, text=self.stop_texts.shown, finish_reason="stop")

    def _new_objects(self, result: TextResult | ObjectResult) -> Iterator[ObjectFound]:
        """The objects that were not told yet."""
        if isinstance(result, ObjectResult):
            for number in range(self.objects, len(result)):
                yield ObjectFound(number, result[number])
            self.objects = max(self.objects, len(result))
