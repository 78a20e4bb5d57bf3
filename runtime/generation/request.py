"""One request: a prompt that was checked, how to answer it, and the images that it is about.

The same object is validated by the pipeline, waits, takes a slot and is answered by the loop. Its
images are read when a slot is free. Knows limits and options. Knows nothing of tensors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from paligemma_edge.runtime.errors import OptionError
from paligemma_edge.runtime.generation.sampling import Sampling
from paligemma_edge.runtime.grammar.base import Grammar, State
from paligemma_edge.runtime.images.batch import ImageBatch
from paligemma_edge.runtime.timing import Stopwatch
from paligemma_edge.runtime.validation import check_count

DEFAULT_MAX_NEW_TOKENS = 256
MAX_TOP_LOG_PROBS = 20

ReadImages: TypeAlias = Callable[[Stopwatch], ImageBatch]


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """How to answer. OptionError where a value cannot be used.

    `max_new_tokens` None is DEFAULT_MAX_NEW_TOKENS, or as many as the model still holds.
    `top_log_probs` is how many of the most likely tokens are kept in the place of each.
    """

    max_new_tokens: int | None = None
    sampling: Sampling | None = None  # None: the most likely token
    grammar: Grammar | None = None  # None: any text
    top_log_probs: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens is not None:
            count = check_count("max_new_tokens", self.max_new_tokens)
            object.__setattr__(self, "max_new_tokens", count)
        if self.top_log_probs != 0:
            count = check_count("top_log_probs", self.top_log_probs, MAX_TOP_LOG_PROBS)
            object.__setattr__(self, "top_log_probs", count)
        sampling, grammar = self.sampling, self.grammar
        if sampling is not None and not _has(sampling, "choose"):
            raise OptionError(
                f"sampling is {sampling!r}, wanted a policy such as TopSampling(temperature=0.7), "
                "or None for the most likely token"
            )
        if grammar is not None and not _has(grammar, "start"):
            raise OptionError(
                f"grammar is {grammar!r}, wanted one such as Choices(('yes', 'no')), "
                "or None for any text"
            )


@dataclass(frozen=True, eq=False)
class Request:
    """A prompt and how to answer it; `images` is missing as long as it may be about any image."""

    prompt: str
    ids: tuple[int, ...]
    length: int  # of images and prompt, in tokens
    max_new_tokens: int
    sampling: Sampling
    state: State | None = None  # the start of a grammar
    images: ReadImages | None = None
    top_log_probs: int = 0

    @property
    def capacity(self) -> int:
        """Tokens that a slot must hold for it."""
        return self.length + self.max_new_tokens

    def about(self, images: ImageBatch | ReadImages) -> Request:
        """The same request about some images, or about what is read when a slot is free."""
        read = images if callable(images) else lambda _: images
        return dataclasses.replace(self, images=read)

    def read(self, watch: Stopwatch) -> ImageBatch:
        """Its images; ImageError where one cannot be read."""
        assert self.images is not None, "a request is answered about images"
        return self.images(watch)


def _has(policy: object, method: str) -> bool:
    return not isinstance(policy, type) and callable(getattr(policy, method, None))
