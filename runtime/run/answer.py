"""What answers the queries of a run: a loop of slots, or a closed set of choices.

Knows the pipeline. Knows nothing of where queries come from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from paligemma_edge.runtime.errors import PromptError
from paligemma_edge.runtime.generation.batch import answer_each, choose_each
from paligemma_edge.runtime.generation.pipeline import Pipeline
from paligemma_edge.runtime.generation.request import GenerationOptions
from paligemma_edge.runtime.generation.sampling import Sampling
from paligemma_edge.runtime.generation.task_request import (
    ChoiceRequest,
    TaskRequest,
    choice_request,
    task_request,
)
from paligemma_edge.runtime.grammar.base import Grammar
from paligemma_edge.runtime.grammar.object_options import ObjectOptions
from paligemma_edge.runtime.results.result import ObjectResult
from paligemma_edge.runtime.run.queries import AnswerQueries, Query, Result

_KEPT = 1024  # requests: a file may hold a hundred thousand prompts


@dataclass(frozen=True)
class Answers:
    """What answers queries, and the prompts that it refuses, each with the reason."""

    answer: AnswerQueries
    refused: Mapping[str, PromptError] = field(default_factory=dict)


def in_slots(
    pipeline: Pipeline,
    prompts: Iterable[str],
    *,
    slots: int,
    max_new_tokens: int | None,
    sampling: Sampling | None,
    grammar: Grammar | None,
    objects: ObjectOptions,
    min_confidence: float | None = None,
) -> Answers:
    """Texts or objects, as each prompt asks; objects of less than `min_confidence` left out."""
    options = GenerationOptions(max_new_tokens=max_new_tokens, sampling=sampling, grammar=grammar)

    @lru_cache(maxsize=_KEPT)
    def request(prompt: str) -> TaskRequest[Result]:
        return task_request(pipeline, prompt, options, objects)

    capacities: list[int] = []
    refused = _refused(prompts, lambda prompt: capacities.append(request(prompt).request.capacity))
    capacity = max(capacities, default=1)

    def answer(queries: Iterable[Query]) -> Iterator[tuple[Query, Result]]:
        items = ((query, query.images, request(query.prompt)) for query in queries)
        for query, result in answer_each(pipeline, items, slots=slots, capacity=capacity):
            yield query, _confident(result, min_confidence)

    return Answers(answer, refused)


def among_choices(pipeline: Pipeline, prompts: Iterable[str], choices: Sequence[str]) -> Answers:
    """One of `choices` with the probability of each; errors as `EncodedImage.classify`."""

    @lru_cache(maxsize=_KEPT)
    def request(prompt: str) -> ChoiceRequest:
        return choice_request(pipeline, prompt, choices, 1)

    refused = _refused(prompts, request)

    def answer(queries: Iterable[Query]) -> Iterator[tuple[Query, Result]]:
        items = ((query, query.images, request(query.prompt)) for query in queries)
        yield from choose_each(pipeline, items)

    return Answers(answer, refused)


def _refused(prompts: Iterable[str], check: Callable[[str], object]) -> dict[str, PromptError]:
    """The prompts that cannot be asked, with the reasons."""
    refused = {}
    for prompt in prompts:
        try:
            check(prompt)
        except PromptError as error:
            refused[prompt] = error
    return refused


def _confident(result: Result, least: float | None) -> Result:
    if least is None or not isinstance(result, ObjectResult):
        return result
    return result.filter(min_confidence=least)
