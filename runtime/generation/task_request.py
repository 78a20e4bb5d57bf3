"""What a typed call asks: a prompt that was checked, and what its answer becomes.

Knows tasks, grammars and typed results. Of images it knows their number and size alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

from PIL import Image

from paligemma_edge.runtime.engine.engine import Tensor
from paligemma_edge.runtime.errors import OptionError
from paligemma_edge.runtime.generation.pipeline import Pipeline
from paligemma_edge.runtime.generation.request import GenerationOptions, Request
from paligemma_edge.runtime.grammar.choices import Choices
from paligemma_edge.runtime.grammar.object_options import ObjectOptions
from paligemma_edge.runtime.grammar.task_grammar import task_grammar
from paligemma_edge.runtime.results.build import object_result, text_result
from paligemma_edge.runtime.results.generation import Generation
from paligemma_edge.runtime.results.result import ChoiceResult, ObjectResult, TextResult
from paligemma_edge.runtime.text.tasks import Task

R_co = TypeVar("R_co", covariant=True)
Size: TypeAlias = tuple[int, int]  # width and height


@dataclass(frozen=True, eq=False)
class TaskRequest(Generic[R_co]):
    """A request that may be about any images, and what its answer becomes."""

    request: Request
    build: Callable[[Generation, Size, Image.Image | None], R_co]


def words_request(
    pipeline: Pipeline, task: Task, image_count: int, options: GenerationOptions
) -> TaskRequest[TextResult]:
    """Ask for words. PromptError or OptionError where a prompt or an option cannot be used."""
    request = pipeline.request(task.prompt, image_count, options)
    return TaskRequest(request, lambda generation, _, image: text_result(generation, image))


def objects_request(
    pipeline: Pipeline,
    task: Task,
    image_count: int,
    options: GenerationOptions,
    objects: ObjectOptions,
) -> TaskRequest[ObjectResult]:
    """Ask for objects; a grammar among `options` takes the place of the task's own. Errors too."""
    if image_count > 1:
        raise OptionError(
            f"{image_count} images were given, wanted one: a box lies in one image; "
            "encode each of them alone, or call model.batch(images)"
        )
    request = pipeline.request(task.prompt, image_count, _constrained(task, options, objects))
    engine, constrained = pipeline.engine, objects.constrained and options.grammar is None
    decode_masks = engine.decode_masks if engine.decodes_masks else None

    def build(generation: Generation, size: Size, image: Image.Image | None) -> ObjectResult:
        return object_result(
            task,
            generation,
            size,
            decode_masks,
            constrained=constrained,
            image=image,
            classes=objects.classes,
        )

    return TaskRequest(request, build)


def task_request(
    pipeline: Pipeline,
    prompt: str,
    options: GenerationOptions,
    objects: ObjectOptions | None = None,
    *,
    image_count: int = 1,
) -> TaskRequest[TextResult] | TaskRequest[ObjectResult]:
    """Ask a whole prompt about images: for objects or for words, as its first word says."""
    task = Task.of(prompt)
    if task.labels is None:
        return words_request(pipeline, task, image_count, options)
    return objects_request(pipeline, task, image_count, options, objects or ObjectOptions())


@dataclass(frozen=True, eq=False)
class ChoiceRequest:
    """A prompt that is answered with one of a closed set."""

    request: Request
    choices: Choices

    def answer(
        self, pipeline: Pipeline, features: Tensor, image: Image.Image | None = None
    ) -> ChoiceResult:
        """Score each choice after images with these features."""
        return self.result(pipeline.score(self.request, features, self.choices), image)

    def result(
        self, log_probs: Mapping[str, float], image: Image.Image | None = None
    ) -> ChoiceResult:
        """The likeliest of the choices that were scored."""
        best = max(log_probs, key=lambda choice: log_probs[choice])
        return ChoiceResult(prompt=self.request.prompt, text=best, log_probs=log_probs, image=image)


def choice_request(
    pipeline: Pipeline, prompt: str, choices: Iterable[str], image_count: int
) -> ChoiceRequest:
    """Check a prompt and a set. PromptError or OptionError where one cannot be used."""
    allowed = Choices.of(choices)
    options = GenerationOptions(max_new_tokens=allowed.longest(pipeline.encoder))
    return ChoiceRequest(pipeline.request(prompt, image_count, options), allowed)


def _constrained(
    task: Task, options: GenerationOptions, objects: ObjectOptions
) -> GenerationOptions:
    if options.grammar is not None or not objects.constrained:
        return options
    return dataclasses.replace(options, grammar=task_grammar(task, objects.labels))
