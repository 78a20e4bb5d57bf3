"""What answers the queries of a long run: a loop of slots, or a closed set of answers.

Knows the pipeline. Knows nothing of where queries come from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from paligemma_edge.runtime.encoded_image import EncodedImage
from paligemma_edge.runtime.generation.batch import Item, answer_each, typed_question
from paligemma_edge.runtime.generation.feature_cache import ImageFeatureCache
from paligemma_edge.runtime.generation.pipeline import GenerationOptions, Pipeline
from paligemma_edge.runtime.generation.sampling import Sampling
from paligemma_edge.runtime.grammar.base import Grammar
from paligemma_edge.runtime.grammar.choices import Choices
from paligemma_edge.runtime.run.loop import Answer, Query, Result


def in_slots(
    pipeline: Pipeline,
    prompts: Sequence[str],
    *,
    slots: int,
    max_new_tokens: int | None,
    sampling: Sampling | None,
    grammar: Grammar | bool,
    any_label: bool = False,
) -> Answer:
    """Words or objects, as each prompt asks. PromptError for a prompt that cannot be asked."""
    questions = {
        prompt: typed_question(
            pipeline,
            prompt,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            grammar=grammar,
            any_label=any_label,
        )
        for prompt in prompts
    }
    capacity = max(asked.question.capacity for asked in questions.values())

    def answer(queries: Iterable[Query]) -> Iterator[tuple[Query, Result]]:
        items = (Item(query, query.images, questions[query.prompt]) for query in queries)
        yield from answer_each(pipeline, items, slots=slots, capacity=capacity)

    return answer


def among_choices(pipeline: Pipeline, prompts: Sequence[str], choices: Sequence[str]) -> Answer:
    """One of `choices` with the share of each. PromptError, OptionError as `EncodedImage.classify`."""
    longest = Choices.of(choices).longest(pipeline.encoder)
    for prompt in prompts:
        pipeline.question(prompt, 1, GenerationOptions(max_new_tokens=longest))

    def answer(queries: Iterable[Query]) -> Iterator[tuple[Query, Result]]:
        encoder = ImageFeatureCache(pipeline.engine)
        for query in queries:
            with EncodedImage(pipeline, query.images, encoder=encoder) as view:
                yield query, view.classify(query.prompt, choices)

    return answer
