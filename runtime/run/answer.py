"""What answers the queries of a run: a loop of slots, or a closed set of choices.

Knows the pipeline. Knows nothing of where queries come from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from paligemma_edge.runtime.encoded_image import EncodedImage
from paligemma_edge.runtime.generation.batch import answer_each, task_request
from paligemma_edge.runtime.generation.feature_cache import ImageFeatureCache
from paligemma_edge.runtime.generation.pipeline import Pipeline
from paligemma_edge.runtime.generation.request import GenerationOptions
from paligemma_edge.runtime.generation.sampling import Sampling
from paligemma_edge.runtime.grammar.base import Grammar
from paligemma_edge.runtime.grammar.choices import Choices
from paligemma_edge.runtime.run.queries import AnswerQueries, Query, Result


def in_slots(
    pipeline: Pipeline,
    prompts: Sequence[str],
    *,
    slots: int,
    max_new_tokens: int | None,
    sampling: Sampling | None,
    grammar: Grammar | bool,
    any_label: bool = False,
) -> AnswerQueries:
    """Texts or objects, as each prompt asks. PromptError for a prompt that cannot be answered."""
    requests = {
        prompt: task_request(
            pipeline,
            prompt,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            grammar=grammar,
            any_label=any_label,
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
    longest = Choices.of(choices).longest(pipeline.encoder)
    for prompt in prompts:
        pipeline.request(prompt, 1, GenerationOptions(max_new_tokens=longest))

    def answer(queries: Iterable[Query]) -> Iterator[tuple[Query, Result]]:
        features = ImageFeatureCache(pipeline.engine)
        for query in queries:
            with EncodedImage(pipeline, query.images, features=features) as image:
                yield query, image.classify(query.prompt, choices)

    return answer
