"""What answers the queries of a run: a loop of slots, or a closed set of choices.

Knows the pipeline. Knows nothing of where queries come from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from paligemma_edge.runtime.generation.batch import answer_each, choose_each
from paligemma_edge.runtime.generation.pipeline import Pipeline
from paligemma_edge.runtime.generation.sampling import Sampling
from paligemma_edge.runtime.generation.task_request import (
    TaskRequest,
    choice_request,
    task_request,
)
from paligemma_edge.runtime.grammar.base import Grammar
from paligemma_edge.runtime.grammar.object_options import ObjectOptions
from paligemma_edge.runtime.run.queries import AnswerQueries, Query, Result


def in_slots(
    pipeline: Pipeline,
    prompts: Sequence[str],
    *,
    slots: int,
    max_new_tokens: int | None,
    sampling: Sampling | None,
    grammar: Grammar | None,
    objects: ObjectOptions,
) -> AnswerQueries:
    """Texts or objects, as each prompt asks. PromptError for a prompt that cannot be answered."""
    requests: dict[str, TaskRequest[Result]] = {
        prompt: task_request(
            pipeline,
            prompt,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            grammar=grammar,
            objects=objects,
        )
        for prompt in prompts
    }
    capacity = max(item.request.capacity for item in requests.values())

    def answer(queries: Iterable[Query]) -> Iterator[tuple[Query, Result]]:
        items = ((query, query.images, requests[query.prompt]) for query in queries)
        yield from answer_each(pipeline, items, slots=slots, capacity=capacity)

    return answer


def among_choices(
    pipeline: Pipeline, prompts: Sequence[str], choices: Sequence[str]
) -> AnswerQueries:
    """One of `choices` with the probability of each; errors as `EncodedImage.classify`."""
    requests = {prompt: choice_request(pipeline, prompt, choices, 1) for prompt in prompts}

    def answer(queries: Iterable[Query]) -> Iterator[tuple[Query, Result]]:
        items = ((query, query.images, requests[query.prompt]) for query in queries)
        yield from choose_each(pipeline, items)

    return answer
