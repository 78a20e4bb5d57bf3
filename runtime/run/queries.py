"""Many images, each with some prompts: read ahead, answered as slots become free, passed on.

Knows order, which queries were answered before, and that an image may be broken. Knows nothing of
a model: the function that answers is an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

from paligemma_edge.runtime.errors import DeviceError, ImageError
from paligemma_edge.runtime.images.batch import ImageBatch
from paligemma_edge.runtime.images.load import image_label
from paligemma_edge.runtime.results.result import ChoiceResult, ObjectResult, TextResult
from paligemma_edge.runtime.run.journal import Key
from paligemma_edge.runtime.run.prefetch import Outcome, ahead
from paligemma_edge.runtime.run.sources import Source

Result: TypeAlias = TextResult | ChoiceResult | ObjectResult


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
    """The outcome of a query: a result, or the error of its image."""

    number: int
    source: Source
    prompt: str
    siblings: int
    outcome: Outcome[Result]
    size: tuple[int, int] | None  # width and height
    adapter: str | None = None  # the one that answered

    @cached_property
    def record(self) -> dict[str, Any]:
        """The outcome as plain JSON, with the prompt as it was given.

        ImageError where the masks of this image hold NaN or Inf.
        """
        named = {"image": self.source.name, "prompt": self.prompt}
        if self.adapter is not None:
            named["adapter"] = self.adapter
        if isinstance(self.outcome, ImageError):
            return named | {"error": str(self.outcome)}
        sizes = {} if self.size is None else dict(zip(("width", "height"), self.size, strict=True))
        try:
            return {**named, **sizes, **self.outcome.to_dict(), "prompt": self.prompt}
        except DeviceError as error:
            raise ImageError(f"{image_label(self.source.name)}: {error}") from None


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
    adapter: str | None = None,
) -> None:
    """Answer every prompt about every image, except those in `done`, and call `on_result`.

    Images are read in a thread, at most `depth` of them early. An image for which `read`
    raises an ImageError has that error as its result, once for each prompt; the others go on.
    Each result has the name of the `adapter` that answers.
    """

    def waiting() -> Iterator[tuple[Source, list[str]]]:
        for source in sources:
            if left := [prompt for prompt in prompts if (source.name, prompt) not in done]:
                yield source, left

    def queries() -> Generator[Query, None, None]:
        number = 0
        with closing(ahead(waiting(), lambda entry: read(entry[0]), depth)) as outcomes:
            for (source, left), images in outcomes:
                for prompt in left:
                    if isinstance(images, ImageError):
                        failed = (number, source, prompt, len(left), images, None)
                        on_result(QueryResult(*failed, adapter))
                    else:
                        yield Query(number, source, images, prompt, len(left))
                    number += 1

    with closing(queries()) as waiting_queries:
        for query, result in answer(waiting_queries):
            size = query.images.width, query.images.height
            parts = (query.number, query.source, query.prompt, query.siblings, result, size)
            on_result(QueryResult(*parts, adapter))


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
