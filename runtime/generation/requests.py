"""Requests of a caller: checked together, grouped by their adapter, pictures read one by one.

Knows pairs of pictures and prompts. Knows nothing of how they are answered.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

from paligemma_edge.runtime.errors import ImageError, OptionError, PromptError
from paligemma_edge.runtime.generation.feature_cache import PictureEncoder
from paligemma_edge.runtime.generation.pipeline import Asked, Options, Pipeline, Question
from paligemma_edge.runtime.images.load import ImageInput
from paligemma_edge.runtime.images.pixels import read_pictures
from paligemma_edge.runtime.timing import Stopwatch

Images: TypeAlias = ImageInput | list[ImageInput] | tuple[ImageInput, ...]


@dataclass(frozen=True, eq=False)
class Checked:
    """A request that was checked; `number` is its place among `count`."""

    number: int
    count: int
    images: tuple[ImageInput, ...]
    question: Question


def listed(image: Images) -> tuple[ImageInput, ...]:
    """One picture, or several that a prompt is about together."""
    return tuple(image) if isinstance(image, list | tuple) else (image,)


def check_requests(
    pipeline: Pipeline, requests: Iterable[tuple[Images, str]], options: Options
) -> list[Checked]:
    """Check all prompts; PromptError says which cannot be asked. No picture is read."""
    if not isinstance(requests, Iterable):
        raise PromptError(f"the requests are {type(requests).__name__}, wanted a list of pairs")
    asked, checked = list(requests), list[Checked]()
    for number, request in enumerate(asked):
        with _telling_which(number, len(asked)):
            if not isinstance(request, list | tuple) or len(request) != 2:
                found = type(request).__name__
                raise PromptError(f"a {found} that is no pair, wanted (picture, prompt)")
            images = listed(request[0])
            question = pipeline.question(request[1], len(images), options)
            checked.append(Checked(number, len(asked), images, question))
    return checked


def by_adapter(
    requests: Sequence[Checked], adapter: str | Sequence[str | None] | None
) -> dict[str | None, list[Checked]]:
    """Requests by their adapter, those of the first one first.

    `adapter` is one for all or one for each; OptionError where it is neither.
    """
    names = [adapter] * len(requests) if adapter is None or isinstance(adapter, str) else adapter
    known = isinstance(names, Sequence) and all(n is None or isinstance(n, str) for n in names)
    if not known or len(names) != len(requests):
        raise OptionError(
            f"adapter is {adapter!r}, wanted one name, or one for each of {len(requests)} requests"
        )
    groups: dict[str | None, list[Checked]] = {}
    for name, request in zip(names, requests, strict=True):
        groups.setdefault(name, []).append(request)
    return groups


def asked(pipeline: Pipeline, requests: Iterable[Checked]) -> Iterator[Asked]:
    """Read and encode the pictures of each request when it is asked for.

    ImageError says which of several requests has a picture that cannot be read.
    """
    encoder = PictureEncoder(pipeline.engine)
    for request in requests:
        watch = Stopwatch()
        with _telling_which(request.number, request.count):
            pictures = read_pictures(request.images, pipeline.manifest.image, watch)
        yield Asked(request.question, encoder.features(pictures, watch), watch)


@contextmanager
def _telling_which(number: int, count: int) -> Iterator[None]:
    """Let an error name the one of several requests that it is about."""
    try:
        yield
    except (ImageError, PromptError) as error:
        if count == 1:
            raise
        raise type(error)(f"requests[{number}]: {error}") from None
