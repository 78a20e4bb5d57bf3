"""The typed calls about many images: an answer for each, in slots, in the order of the images."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sized
from typing import Generic, TypeVar, cast

import numpy as np
from PIL import Image

from paligemma_edge.runtime.errors import OptionError
from paligemma_edge.runtime.generation.batch import (
    AnswerEach,
    Images,
    answer_each,
    answer_in_order,
    choose_each,
)
from paligemma_edge.runtime.generation.pipeline import Pipeline
from paligemma_edge.runtime.generation.request import GenerationOptions
from paligemma_edge.runtime.generation.task_request import (
    TaskRequest,
    choice_request,
    objects_request,
    words_request,
)
from paligemma_edge.runtime.grammar.object_options import ObjectOptions
from paligemma_edge.runtime.images.load import ImageInput
from paligemma_edge.runtime.images.read_ahead import read_ahead
from paligemma_edge.runtime.results.result import ChoiceResult, ObjectResult, TextResult
from paligemma_edge.runtime.text.tasks import Task
from paligemma_edge.runtime.typed_calls import TypedCalls

E = TypeVar("E")  # ImageError where errors are returned, Never where they are raised
R = TypeVar("R")


class BatchCalls(
    TypedCalls[
        Generator[TextResult | E, None, None],
        Generator[ObjectResult | E, None, None],
        Generator[ChoiceResult | E, None, None],
    ],
    Generic[E],
):
    """Many images for one prompt at a time; `model.batch(images)` makes it.

    Each call gives an iterator, which reads images as it is read itself: besides the images that
    are answered at a time, as many again are read ahead, so the images may be a generator of any
    length. Closing the iterator gives its slots back. Results equal those of single calls, but do
    not keep their images: `result.draw(image)` takes it again.

    Example:
        >>> for path, result in zip(paths, model.batch(paths).detect("cat")):
        ...     print(path, len(result))
    """

    def __init__(
        self, pipeline: Pipeline, images: Iterable[ImageInput], slots: int, *, keep_errors: bool
    ) -> None:
        """`slots` images are answered at a time; OptionError where `images` is only one image."""
        _refuse_one(images)
        self._pipeline, self._images, self._keep_errors = pipeline, images, keep_errors
        count = len(images) if isinstance(images, Sized) else slots
        self._slots = max(1, min(slots, count))
        self._used = False

    def _words(
        self, task: Task, max_new_tokens: int | None
    ) -> Generator[TextResult | E, None, None]:
        options = GenerationOptions(max_new_tokens=max_new_tokens)
        return self._in_slots(words_request(self._pipeline, task, 1, options))

    def _objects(
        self, task: Task, objects: ObjectOptions, max_new_tokens: int | None
    ) -> Generator[ObjectResult | E, None, None]:
        options = GenerationOptions(max_new_tokens=max_new_tokens)
        return self._in_slots(objects_request(self._pipeline, task, 1, options, objects))

    def _choice(
        self, prompt: str, choices: Iterable[str]
    ) -> Generator[ChoiceResult | E, None, None]:
        request = choice_request(self._pipeline, prompt, choices, 1)

        def answer(images: Images) -> Generator[tuple[int, ChoiceResult], None, None]:
            yield from choose_each(self._pipeline, ((n, seen, request) for n, seen in images))

        return self._in_order(answer)

    def _in_slots(self, request: TaskRequest[R]) -> Generator[R | E, None, None]:
        def answer(images: Images) -> Generator[tuple[int, R], None, None]:
            items = ((number, seen, request) for number, seen in images)
            capacity = request.request.capacity
            yield from answer_each(self._pipeline, items, slots=self._slots, capacity=capacity)

        return self._in_order(answer)

    def _in_order(self, answer: AnswerEach[R]) -> Generator[R | E, None, None]:
        if isinstance(self._images, Iterator):
            if self._used:
                raise OptionError(
                    "the images were an iterator, which the first call used up; give a list to "
                    "ask several prompts, or call model.batch again"
                )
            self._used = True
        outcomes = read_ahead(self._images, self._pipeline.images, self._slots)
        results = answer_in_order(outcomes, answer, keep_errors=self._keep_errors)
        return cast("Generator[R | E, None, None]", results)


def _refuse_one(images: object) -> None:
    single = isinstance(images, str | bytes | Image.Image) or not isinstance(images, Iterable)
    if single or (isinstance(images, np.ndarray) and images.ndim != 4):
        raise OptionError(
            f"images is one {type(images).__name__}, wanted a list or another iterable of images, "
            "such as Path('photos').glob('*.jpg')"
        )
