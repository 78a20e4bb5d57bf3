"""Many images, answered in slots as what a prompt asks for, or with one of a closed set.

Knows typed requests, slots and the order of results. Knows nothing of where images come from or
where results go.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Generic, TypeAlias, TypeVar

from paligemma_edge.runtime.errors import ImageError
from paligemma_edge.runtime.generation.feature_cache import ImageFeatureCache
from paligemma_edge.runtime.generation.pipeline import Pipeline
from paligemma_edge.runtime.generation.request import Request
from paligemma_edge.runtime.generation.task_request import ChoiceRequest, TaskRequest
from paligemma_edge.runtime.images.batch import ImageBatch
from paligemma_edge.runtime.results.result import ChoiceResult
from paligemma_edge.runtime.timing import Stopwatch

Key = TypeVar("Key")
Result = TypeVar("Result")
Images: TypeAlias = Iterator[tuple[int, ImageBatch]]  # each with its place
# Answers images as they are taken: results with the places of their images, in any order.
AnswerEach: TypeAlias = Callable[[Images], Generator[tuple[int, Result], None, None]]

_MOST_HELD = 256  # results that wait for one before them


def answer_each(
    pipeline: Pipeline,
    items: Iterable[tuple[Key, ImageBatch, TaskRequest[Result]]],
    *,
    slots: int,
    capacity: int,
) -> Generator[tuple[Key, Result], None, None]:
    """Answer items in so many slots; yield (key, result) as answers end.

    `items` is read only as slots become free. `capacity` is that of the longest request. An
    image whose pixels were seen lately is not encoded again. Results do not keep their images.
    """
    waiting: dict[int, tuple[Key, ImageBatch, TaskRequest[Result]]] = {}

    def requests() -> Iterator[Request]:
        for number, (key, images, item) in enumerate(items):
            waiting[number] = key, images, item
            yield item.request.about(images)

    with closing(pipeline.answer(requests(), slots=slots, capacity=capacity)) as answers:
        for number, generation in answers:
            key, images, item = waiting.pop(number)
            yield key, item.build(generation, (images.width, images.height), None)


def choose_each(
    pipeline: Pipeline, items: Iterable[tuple[Key, ImageBatch, ChoiceRequest]]
) -> Generator[tuple[Key, ChoiceResult], None, None]:
    """Answer items with one of a closed set, one after the other; otherwise as `answer_each`."""
    features = ImageFeatureCache(pipeline.engine)
    for key, images, item in items:
        yield key, item.answer(pipeline, features.features(images, Stopwatch()))


def answer_in_order(
    outcomes: Generator[ImageBatch | ImageError, None, None],
    answer: AnswerEach[Result],
    *,
    keep_errors: bool,
) -> Generator[Result | ImageError, None, None]:
    """Answer images that were read, or the errors of those that could not be; yield in order.

    With `keep_errors` an ImageError stands in the place of its image's result. Without, it is
    raised there, after all results before it; so is whatever error the images end with.
    """
    order: _Order[Result] = _Order(keep_errors)
    with closing(outcomes):
        while not order.ended:
            with closing(answer(order.take(outcomes))) as answers:
                for number, result in answers:
                    order.ready[number] = result
                    yield from order.next_results()
            yield from order.next_results()
        if order.error is not None:
            raise order.error


@dataclass
class _Order(Generic[Result]):
    """Which image comes next, on the way in and on the way out."""

    keep_errors: bool
    ready: dict[int, Result | ImageError] = field(default_factory=dict)  # by place
    error: Exception | None = None  # that ends the images
    ended: bool = False
    taken: int = 0
    given: int = 0

    def take(self, outcomes: Iterator[ImageBatch | ImageError]) -> Images:
        """Images to answer, until they end or too many results wait for one before them."""
        while len(self.ready) < _MOST_HELD:
            outcome = self._next(outcomes)
            if outcome is None:
                return
            place, self.taken = self.taken, self.taken + 1
            if isinstance(outcome, ImageError):
                self.ready[place] = outcome
            else:
                yield place, outcome

    def _next(self, outcomes: Iterator[ImageBatch | ImageError]) -> ImageBatch | ImageError | None:
        """The next outcome; None at the end, whose reason is kept until its place is reached."""
        try:
            outcome = next(outcomes, None)
        except Exception as error:  # of the caller's own iterator: what was answered is given first
            outcome, self.error = None, error
        if isinstance(outcome, ImageError) and not self.keep_errors:
            outcome, self.error = None, outcome
        self.ended = outcome is None
        return outcome

    def next_results(self) -> Iterator[Result | ImageError]:
        while self.given in self.ready:
            self.given += 1
            yield self.ready.pop(self.given - 1)
