"""What is asked of the scheduler: a question about images, for whom, and until when."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from paligemma_edge.runtime.generation.task_request import ChoiceRequest, TaskRequest
from paligemma_edge.runtime.images.batch import ImageBatch
from paligemma_edge.runtime.results.result import ObjectResult, TextResult
from paligemma_edge.runtime.scheduling.events import Event

Question: TypeAlias = TaskRequest[TextResult] | TaskRequest[ObjectResult] | ChoiceRequest
Listener: TypeAlias = Callable[[Event], None]


@dataclass(frozen=True, eq=False, kw_only=True)
class Job:
    """A question about images that were read already.

    Args:
        question: a prompt that was checked, and what becomes of its answer.
        images: what it is about.
        listener: told each event by the engine thread; it must return at once.
        deadline: until when an answer is of use, as `time.monotonic()` counts. A job that waits is
            then given up, an answer that has begun is cut.
        adapter: LoRA adapter that answers; None is the base model.
        client: whose job it is; clients take turns.
        stop: texts that end the answer, and are no part of it.
        supersede: a waiting job of the same client under this name makes room for this one.
        request_id: of the request that it belongs to, whose jobs do not supersede one another.
        stream_objects: whether the listener is told of objects as they are complete.
    """

    question: Question
    images: ImageBatch
    listener: Listener
    deadline: float
    adapter: str | None = None
    client: str = ""
    stop: tuple[str, ...] = ()
    supersede: str | None = None
    request_id: str = ""
    stream_objects: bool = False
