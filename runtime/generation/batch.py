"""Many images, each with some prompts, answered in slots as what the prompts ask for.

Knows tasks and typed results. Knows nothing of where images come from or where results go.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from paligemma_edge.runtime.generation.pipeline import Pipeline
from paligemma_edge.runtime.generation.request import GenerationOptions, Request
from paligemma_edge.runtime.generation.sampling import Sampling
from paligemma_edge.runtime.grammar.base import Grammar
from paligemma_edge.runtime.grammar.task_grammar import task_grammar
from paligemma_edge.runtime.images.batch import ImageBatch
from paligemma_edge.runtime.results.build import build_result
from paligemma_edge.runtime.results.result import ObjectResult, TextResult
from paligemma_edge.runtime.text.tasks import Task

Key = TypeVar("Key")


@dataclass(frozen=True, eq=False)
class TaskRequest:
    """A request about one image, and the task that decides what its answer becomes."""

    task: Task
    request: Request
    constrained: bool  # by the task's own grammar


def task_request(
    pipeline: Pipeline,
    prompt: str,
    *,
    max_new_tokens: int | None = None,
    sampling: Sampling | None = None,
    grammar: Grammar | bool = True,
    any_label: bool = False,
) -> TaskRequest:
    """Check a prompt about one image.

    `grammar` True takes the task's own, False none. PromptError or OptionError where the prompt
    or an option cannot be used.
    """
    task = Task.of(prompt)
    rules = grammar if not isinstance(grammar, bool) else None
    if grammar is True:
        rules = task_grammar(task, "any" if any_label else "asked")
    options = GenerationOptions(max_new_tokens=max_new_tokens, sampling=sampling, grammar=rules)
    return TaskRequest(task, pipeline.request(prompt, 1, options), constrained=grammar is True)


def answer_each(
    pipeline: Pipeline,
    items: Iterable[tuple[Key, ImageBatch, TaskRequest]],
    *,
    slots: int,
    capacity: int,
) -> Iterator[tuple[Key, TextResult | ObjectResult]]:
    """Answer items in so many slots; yield (key, result) as answers end.

    `items` is read only as slots become free. `capacity` is that of the longest request. An
    image whose pixels were seen lately is not encoded again.
    """
    waiting: dict[int, tuple[Key, ImageBatch, TaskRequest]] = {}

    def requests() -> Iterator[Request]:
        for number, (key, images, item) in enumerate(items):
            waiting[number] = key, images, item
            yield item.request.about(images)

    decode_masks = pipeline.engine.decode_masks if pipeline.engine.decodes_masks else None
    for number, generation in pipeline.answer(requests(), slots=slots, capacity=capacity):
        key, images, item = waiting.pop(number)
        size = images.width, images.height
        yield (
            key,
            build_result(item.task, generation, size, decode_masks, constrained=item.constrained),
        )
