"""Many images, each with some prompts: read ahead, answered as slots become free, passed on.

Knows order, which queries were answered before, and that an image may be broken. Knows nothing of
a model: the function that answers is an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

from paligemma_edge.runtime.errors import DeviceError, ImageError, PromptError
from paligemma_edge.runtime.images.batch import ImageBatch
from paligemma_edge.runtime.images.load import image_label
from paligemma_edge.runtime.results.result import ChoiceResult, ObjectResult, TextResult
from paligemma_edge.runtime.run.journal import Key
from paligemma_edge.runtime.run.prefetch import ahead
from paligemma_edge.runtime.run.sources import Source

Result: TypeAlias = TextResult | ChoiceResult | ObjectResult
Failure: TypeAlias = ImageError | PromptError  # of one query: the others go on


@dataclass(frozen=True, eq=False)
class Query:
    """A prompt about an image that was read; `number` counts them in order."""

    number: int
    source: Source
    images: ImageBatch
    prompt: str
    siblings: int  # queries about this image


@dataclass(frozen=True, eq=False)
class QueryResult:
    """The outcome of a query: a result, or the error of its image or prompt."""

    number: int
    source: Source
    prompt: str
    siblings: int
    outcome: Result | Failure
    size: tuple[int, int] | None  # width and height
    model: Mapping[str, str] = field(default_factory=dict)  # what answered: variant, adapter

    @cached_property
    def record(self) -> dict[str, Any]:
        """The outcome as plain JSON, with the prompt as it was given.

        ImageError where the masks of this image hold NaN or Inf.
        """
        named = {"image": self.source.name, "prompt": self.prompt, **self.model}
        time = {} if self.source.time is None else {"time": self.source.time}
        if isinstance(self.outcome, Failure):
            return named | {"error": str(self.outcome)} | time
        sizes = {} if self.size is None else dict(zip(("width", "height"), self.size, strict=True))
        try:
            return {**named, **sizes, **self.outcome.to_dict(), **time, "prompt": self.prompt}
        except DeviceError as error:
            raise ImageError(f"{image_label(self.source.name)}: {error}") from None


def made_by(variant: str, adapter: str | None) -> dict[str, str]:
    """What answers, as records say it."""
    return {"variant": variant} if adapter is None else {"variant": variant, "adapter": adapter}


# Takes queries only as it can begin them, gives results as they are complete, in any order.
AnswerQueries: TypeAlias = Callable[[Iterable[Query]], Iterator[tuple[Query, Result]]]


def answer_sources(
    sources: Iterable[Source],
    prompts: Sequence[str],
    *,
    read: Callable[[Source], ImageBatch],
    answer: AnswerQueries,
    on_result: Callable[[QueryResult], None],
    done: Container[Key] = frozenset(),
    depth: int,
    refused: Mapping[str, PromptError] | None = None,
    model: Mapping[str, str] | None = None,
) -> None:
    """Answer every prompt about every image, except those in `done`, and call `on_result`.

    `prompts` are for images that have none of their own. Images are read in a thread, at most
    `depth` of them early. An image for which `read` raises an ImageError has that error as its
    result, once for each prompt, and a prompt that is `refused` has its own; the others go on.
    Each result says by which `model` it was made.
    """
    answered_by, reasons = model or {}, refused or {}

    def waiting() -> Iterator[tuple[Source, list[str]]]:
        for source in sources:
            asked = source.prompts or prompts
            if left := [prompt for prompt in asked if (source.name, prompt) not in done]:
                yield source, left

    def queries() -> Generator[Query, None, None]:
        number = 0
        with closing(ahead(waiting(), lambda entry: read(entry[0]), depth)) as outcomes:
            for (source, left), images in outcomes:
                for prompt in left:
                    error = _failure(images, reasons.get(prompt), source.place)
                    if error is not None:
                        failed = (number, source, prompt, len(left), error, None)
                        on_result(QueryResult(*failed, answered_by))
                    else:
                        assert not isinstance(images, ImageError)
                        yield Query(number, source, images, prompt, len(left))
                    number += 1

    with closing(queries()) as waiting_queries:
        for query, result in answer(waiting_queries):
            size = query.images.width, query.images.height
            parts = (query.number, query.source, query.prompt, query.siblings, result, size)
            on_result(QueryResult(*parts, answered_by))


def _failure(
    images: ImageBatch | ImageError, refused: PromptError | None, place: str
) -> Failure | None:
    """What stops a query, if anything; of a prompt with the line that it is from."""
    if isinstance(images, ImageError):
        return images
    return PromptError(f"{place}: {refused}") if refused and place else refused


@dataclass
class InOrder:
    """Passes results on in the order of their queries, as soon as that is possible."""

    take: Callable[[QueryResult], None]
    _next: int = 0
    _held: dict[int, QueryResult] = field(default_factory=dict)

    def __call__(self, answered: QueryResult) -> None:
        """Take a result, in any order."""
        self._held[answered.number] = answered
        while (result := self._held.pop(self._next, None)) is not None:
            self._next += 1
            self.take(result)

    def flush(self) -> None:
        """Pass on all that are left, where some in between never came."""
        for number in sorted(self._held):
            self.take(self._held.pop(number))
