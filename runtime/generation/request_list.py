"""A caller's pairs of images and prompts as requests, all checked before one is answered.

Knows how callers write them, and which one an error is about.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeAlias

from paligemma_edge.runtime.errors import ImageError, OptionError, PromptError
from paligemma_edge.runtime.generation.pipeline import Pipeline
from paligemma_edge.runtime.generation.request import GenerationOptions, Request
from paligemma_edge.runtime.images.batch import ImageBatch
from paligemma_edge.runtime.images.load import ImageInput
from paligemma_edge.runtime.timing import Stopwatch

Images: TypeAlias = ImageInput | list[ImageInput] | tuple[ImageInput, ...]


def as_tuple(image: Images) -> tuple[ImageInput, ...]:
    """One image, or several that a prompt is about together."""
    return tuple(image) if isinstance(image, list | tuple) else (image,)


def refuse_list(image: object) -> None:
    """OptionError for a list of images in the place of one: it may be meant in two ways."""
    if isinstance(image, list | tuple):
        raise OptionError(
            f"image is a {type(image).__name__} of {len(image)}, wanted one image; for an answer "
            "about each call model.batch(images).detect(...), for one answer about all of them "
            "model.encode(first, second).ask(...)"
        )


def validate_requests(
    pipeline: Pipeline, pairs: Iterable[tuple[Images, str]], options: GenerationOptions
) -> list[Request]:
    """Check all prompts; PromptError says which cannot be answered. No image is read yet.

    When an image is read later and cannot be, the ImageError says which request it belongs to.
    """
    if not isinstance(pairs, Iterable):
        raise PromptError(f"the requests are {type(pairs).__name__}, wanted a list of pairs")
    listed = list(pairs)
    return [_validated(pipeline, pair, options, n, len(listed)) for n, pair in enumerate(listed)]


def group_by_adapter(
    count: int, adapter: str | Sequence[str | None] | None
) -> Mapping[str | None, list[int]]:
    """Places of `count` requests by their adapter, those of the first one first.

    `adapter` is one for all or one for each; OptionError where it is neither.
    """
    names = [adapter] * count if adapter is None or isinstance(adapter, str) else adapter
    known = isinstance(names, Sequence) and all(n is None or isinstance(n, str) for n in names)
    if not known or len(names) != count:
        raise OptionError(
            f"adapter is {adapter!r}, wanted one name, or one for each of {count} requests"
        )
    groups: dict[str | None, list[int]] = {}
    for place, name in enumerate(names):
        groups.setdefault(name, []).append(place)
    return groups


def _validated(
    pipeline: Pipeline, pair: object, options: GenerationOptions, number: int, count: int
) -> Request:
    with _naming_request(number, count):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            kind = type(pair).__name__
            raise PromptError(f"a {kind} that is not a pair, wanted (image, prompt)")
        images = as_tuple(pair[0])
        request = pipeline.request(pair[1], len(images), options)

    def read(watch: Stopwatch) -> ImageBatch:
        with _naming_request(number, count):
            return pipeline.read_images(images, watch)

    return request.about(read)


@contextmanager
def _naming_request(number: int, count: int) -> Iterator[None]:
    """Let an error name the one of several requests that it is about."""
    try:
        yield
    except (ImageError, PromptError) as error:
        if count == 1:
            raise
        raise type(error)(f"requests[{number}]: {error}") from None
