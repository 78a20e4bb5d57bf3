"""Requests of a caller: checked together, grouped by their adapter, images read one by one.

Knows pairs of images and prompts. Knows nothing of how they are answered.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

from paligemma_edge.runtime.errors import ImageError, OptionError, PromptError
from paligemma_edge.runtime.generation.feature_cache import ImageFeatureCache
from paligemma_edge.runtime.generation.pipeline import (
    EncodedRequest,
    GenerationOptions,
    Pipeline,
    PreparedPrompt,
)
from paligemma_edge.runtime.images.batch import read_images
from paligemma_edge.runtime.images.load import ImageInput
from paligemma_edge.runtime.timing import Stopwatch

Images: TypeAlias = ImageInput | list[ImageInput] | tuple[ImageInput, ...]


@dataclass(frozen=True, eq=False)
class ValidatedRequest:
    """A request that was checked; `number` is its place among `count`."""

    number: int
    count: int
    images: tuple[ImageInput, ...]
    question: PreparedPrompt


def as_tuple(image: Images) -> tuple[ImageInput, ...]:
    """One image, or several that a prompt is about together."""
    return tuple(image) if isinstance(image, list | tuple) else (image,)


def validate_requests(
    pipeline: Pipeline, requests: Iterable[tuple[Images, str]], options: GenerationOptions
) -> list[ValidatedRequest]:
    """Check all prompts; PromptError says which cannot be asked. No image is read."""
    if not isinstance(requests, Iterable):
        raise PromptError(f"the requests are {type(requests).__name__}, wanted a list of pairs")
    encode_requests, checked = list(requests), list[ValidatedRequest]()
    for number, request in enumerate(encode_requests):
        with _telling_which(number, len(encode_requests)):
            if not isinstance(request, list | tuple) or len(request) != 2:
                found = type(request).__name__
                raise PromptError(f"a {found} that is no pair, wanted (image, prompt)")
            images = as_tuple(request[0])
            question = pipeline.question(request[1], len(images), options)
            checked.append(ValidatedRequest(number, len(encode_requests), images, question))
    return checked


def group_by_adapter(
    requests: Sequence[ValidatedRequest], adapter: str | Sequence[str | None] | None
) -> dict[str | None, list[ValidatedRequest]]:
    """Requests by their adapter, those of the first one first.

    `adapter` is one for all or one for each; OptionError where it is neither.
    """
    names = [adapter] * len(requests) if adapter is None or isinstance(adapter, str) else adapter
    known = isinstance(names, Sequence) and all(n is None or isinstance(n, str) for n in names)
    if not known or len(names) != len(requests):
        raise OptionError(
            f"adapter is {adapter!r}, wanted one name, or one for each of {len(requests)} requests"
        )
    groups: dict[str | None, list[ValidatedRequest]] = {}
    for name, request in zip(names, requests, strict=True):
        groups.setdefault(name, []).append(request)
    return groups


def encode_requests(
    pipeline: Pipeline, requests: Iterable[ValidatedRequest]
) -> Iterator[EncodedRequest]:
    """Read and encode the images of each request when it is asked for.

    ImageError says which of several requests has an image that cannot be read.
    """
    encoder = ImageFeatureCache(pipeline.engine)
    for request in requests:
        watch = Stopwatch()
        with _telling_which(request.number, request.count):
            images = read_images(request.images, pipeline.manifest.image, watch)
        yield EncodedRequest(request.question, encoder.features(images, watch), watch)


@contextmanager
def _telling_which(number: int, count: int) -> Iterator[None]:
    """Let an error name the one of several requests that it is about."""
    try:
        yield
    except (ImageError, PromptError) as error:
        if count == 1:
            raise
        raise type(error)(f"requests[{number}]: {error}") from None
