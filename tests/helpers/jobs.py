"""Jobs for a scheduler, and a listener that keeps what it is told."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paligemma_edge.runtime.generation.request import GenerationOptions
from paligemma_edge.runtime.generation.task_request import choice_request, task_request
from paligemma_edge.runtime.scheduling.events import Event, Failed, Finished, TokenGenerated
from paligemma_edge.runtime.scheduling.job import Job, Question
from paligemma_edge.runtime.scheduling.scheduler import Scheduler

LONG = 600.0  # seconds; no test waits for it


@dataclass
class Heard:
    """What a job's listener was told; `react` is called with each event as it comes."""

    react: Callable[[Event], None] = lambda event: None
    events: list[Event] = field(default_factory=list)
    _ends: queue.SimpleQueue[Event] = field(default_factory=queue.SimpleQueue)

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Finished | Failed):
            self._ends.put(event)
        self.react(event)

    @property
    def finished(self) -> Finished:
        """The last event, once it has come."""
        event = self._ends.get(timeout=LONG)
        assert isinstance(event, Finished), event
        return event

    @property
    def error(self) -> Exception:
        """The error, once it has come."""
        event = self._ends.get(timeout=LONG)
        assert isinstance(event, Failed), event
        return event.error

    @property
    def text(self) -> str:
        """The pieces so far."""
        return "".join(one.text for one in self.events if isinstance(one, TokenGenerated))


def submitted(
    scheduler: Scheduler,
    image: Path,
    question: str | Question,
    react: Callable[[Event], None] = lambda event: None,
    **fields: Any,  # noqa: ANN401 - of Job
) -> tuple[Job, Heard]:
    """Ask a prompt, or a question that was made already."""
    pipeline, heard = scheduler.model.with_adapter(fields.get("adapter")), Heard(react)
    if isinstance(question, str):
        question = task_request(pipeline, question, GenerationOptions())
    job = Job(
        question=question,
        images=pipeline.read_images([image]),
        listener=heard,
        **{"deadline": time.monotonic() + LONG, **fields},
    )
    scheduler.submit(job, scheduler.reserve(job.client, 1))
    return job, heard


def choice(scheduler: Scheduler, prompt: str, *choices: str) -> Question:
    """A question that is answered with one of a closed set."""
    return choice_request(scheduler.model.pipeline, prompt, choices, 1)
