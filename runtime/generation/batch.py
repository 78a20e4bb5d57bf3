"""Many images, each asked some prompts, answered in slots as what the prompts ask for.

Knows typed questions and results. Knows nothing of where images come from or where results go.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from paligemma_edge.runtime.generation.feature_cache import ImageFeatureCache
from paligemma_edge.runtime.generation.pipeline import (
    EncodedRequest,
    GenerationOptions,
    Pipeline,
    PreparedPrompt,
)
from paligemma_edge.runtime.generation.sampling import Sampling
from paligemma_edge.runtime.grammar.base import Grammar
from paligemma_edge.runtime.grammar.task_grammar import task_grammar
from paligemma_edge.runtime.images.batch import ImageBatch
from paligemma_edge.runtime.results.build import build_result
from paligemma_edge.runtime.results.result import ObjectResult, TextResult
from paligemma_edge.runtime.text.tasks import Task
from paligemma_edge.runtime.timing import Stopwatch

Key = TypeVar("Key")


@dataclass(frozen=True, eq=False)
class TypedQuestion:
    """A prompt about one image that was checked, and what its answer is to become."""

    task: Task
    question: PreparedPrompt


@dataclass(frozen=True, eq=False)
class Item(Generic[Key]):
    """An image and a question about it; the key is what the caller knows it by."""

    key: Key
    images: ImageBatch
    asked: TypedQuestion


def typed_question(
    pipeline: Pipeline,
    prompt: str,
    *,
    max_new_tokens: int | None = None,
    sampling: Sampling | None = None,
    grammar: Grammar | bool = True,
    any_label: bool = False,
) -> TypedQuestion:
    """Check a prompt about one image.

    `grammar` True takes the task's own, False none. PromptError or OptionError where the prompt
    or an option cannot be used.
    """
    task = Task.of(prompt)
    if isinstance(grammar, bool):
        rules: Grammar | None = task_grammar(task, any_label=any_label) if grammar else None
    else:
        rules = grammar
    options = GenerationOptions(max_new_tokens=max_new_tokens, sampling=sampling, grammar=rules)
    return TypedQuestion(task, pipeline.question(prompt, 1, options))


def answer_each(
    pipeline: Pipeline, items: Iterable[Item[Key]], *, slots: int, capacity: int
) -> Iterator[tuple[Key, TextResult | ObjectResult]]:
    """Answer items in so many slots; yield (key, result) as answers are complete.

    `items` is read only as slots become free. `capacity` is that of the longest question. A
    image whose pixels were seen lately is not encoded again.
    """
    waiting: dict[int, Item[Key]] = {}
    encoder, engine = ImageFeatureCache(pipeline.engine), pipeline.engine
    decode_masks = engine.decode_masks if engine.decodes_masks else None

    def asked() -> Iterator[EncodedRequest]:
        for number, item in enumerate(items):
            waiting[number], watch = item, Stopwatch()
            features = encoder.features(item.images, watch)
            yield EncodedRequest(item.asked.question, features, watch)

    for number, generation in pipeline.answer(asked(), slots=slots, capacity=capacity):
        item = waiting.pop(number)
        size = (item.images.width, item.images.height)
        yield item.key, build_result(item.asked.task, generation, size, decode_masks)
