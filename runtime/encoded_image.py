"""An image that was encoded once, for any number of prompts.

What is kept are the vision features. The decoder's keys and values cannot be kept: a PaliGemma
prompt sees itself whole, image included, so another prompt changes them all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Self, TypeVar

from PIL import Image

from paligemma_edge.runtime.engine.engine import Tensor
from paligemma_edge.runtime.errors import OptionError
from paligemma_edge.runtime.generation.feature_cache import ImageFeatureCache
from paligemma_edge.runtime.generation.pipeline import Pipeline
from paligemma_edge.runtime.generation.request import GenerationOptions, Request
from paligemma_edge.runtime.generation.sampling import Sampling
from paligemma_edge.runtime.generation.task_request import (
    TaskRequest,
    choice_request,
    objects_request,
    words_request,
)
from paligemma_edge.runtime.grammar.base import Grammar
from paligemma_edge.runtime.grammar.object_options import ObjectOptions
from paligemma_edge.runtime.images.batch import ImageBatch
from paligemma_edge.runtime.results.generation import Generation
from paligemma_edge.runtime.results.result import ChoiceResult, ObjectResult, TextResult
from paligemma_edge.runtime.text.tasks import Task
from paligemma_edge.runtime.timing import Stopwatch
from paligemma_edge.runtime.typed_calls import TypedCalls

R = TypeVar("R")


class EncodedImage(TypedCalls[TextResult, ObjectResult, ChoiceResult]):
    """One image, or several that a prompt is about together; `model.encode(image)` makes it.

    The vision features are made with the first answer and kept for all others; `close()` or `with`
    gives them back. Threads may ask at once, as a model allows it.

    Example:
        >>> with model.encode("street.jpg") as encoded:
        ...     print(encoded.caption(), encoded.ask("what colour is the car?"))
    """

    def __init__(
        self,
        pipeline: Pipeline,
        images: ImageBatch,
        watch: Stopwatch | None = None,
        image: Image.Image | None = None,
    ) -> None:
        """`image` is what results show in a notebook; `watch` has the seconds spent so far."""
        self._pipeline = pipeline
        self._cache = ImageFeatureCache(pipeline.engine)
        self._images: ImageBatch | None = images
        self._watch = watch or Stopwatch()
        self._image = image

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        if self._images is None:
            return "EncodedImage(closed)"
        images = f"{self._images.count} images" if self._images.count > 1 else "1 image"
        return f"EncodedImage({images}, {self._images.width}x{self._images.height})"

    def close(self) -> None:
        """Give the features back; any call after it is an OptionError."""
        self._images = None
        self._cache = ImageFeatureCache(self._pipeline.engine)

    def generate(
        self,
        prompt: str,
        *,
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
        grammar: Grammar | None = None,
    ) -> Generation:
        """Answer any prompt; the text is not interpreted.

        Args:
            prompt: a whole prompt, asked as it is typed.
            max_new_tokens: tokens of the answer at most; default: 256, or what the model holds.
            sampling: such as TopSampling(temperature=0.7); default: the most likely token.
            grammar: such as Choices or Regex, that the answer is held to; default: any text.

        Returns:
            A Generation: text, tokens, their log-probabilities, why it ended, seconds by stage.

        Raises:
            PromptError: the prompt does not fit into the model.
            OptionError: an option cannot be used, or the image was closed.

        Example:
            >>> encoded.generate("describe en").text
            'In this image we can see a cat on a sofa.'
        """
        options = GenerationOptions(
            max_new_tokens=max_new_tokens, sampling=sampling, grammar=grammar
        )
        request = self._pipeline.request(prompt, self._open.count, options)
        return self._pipeline.answer_one(self._about(request), self._cache)

    def stream(
        self,
        prompt: str,
        *,
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
        grammar: Grammar | None = None,
    ) -> Iterator[str]:
        """The text of `generate`, piece by piece; a character is never cut in two.

        Args:
            prompt: as for `generate`.
            max_new_tokens: as for `generate`.
            sampling: as for `generate`.
            grammar: as for `generate`.

        Returns:
            An iterator of pieces of text. The answer is made as it is read.

        Raises:
            PromptError: as for `generate`, by the call itself.
            OptionError: as for `generate`, by the call itself.

        Example:
            >>> for piece in encoded.stream("caption en"):
            ...     print(piece, end="", flush=True)
        """
        options = GenerationOptions(
            max_new_tokens=max_new_tokens, sampling=sampling, grammar=grammar
        )
        request = self._pipeline.request(prompt, self._open.count, options)
        return self._pipeline.stream(self._about(request), self._cache)

    def _words(self, task: Task, max_new_tokens: int | None) -> TextResult:
        options = GenerationOptions(max_new_tokens=max_new_tokens)
        return self._answer(words_request(self._pipeline, task, self._open.count, options))

    def _objects(
        self, task: Task, objects: ObjectOptions, max_new_tokens: int | None
    ) -> ObjectResult:
        count, options = self._open.count, GenerationOptions(max_new_tokens=max_new_tokens)
        return self._answer(objects_request(self._pipeline, task, count, options, objects))

    def _choice(self, prompt: str, choices: Iterable[str]) -> ChoiceResult:
        request = choice_request(self._pipeline, prompt, choices, self._open.count)
        return request.answer(self._pipeline, self._features, self._image)

    def _answer(self, asked: TaskRequest[R]) -> R:
        generation = self._pipeline.answer_one(self._about(asked.request), self._cache)
        return asked.build(generation, (self._open.width, self._open.height), self._image)

    def _about(self, request: Request) -> Request:
        return request.about(self._read)

    def _read(self, watch: Stopwatch) -> ImageBatch:
        """The images; what was spent on them counts for the answer that came first."""
        images, _ = self._open, self._features
        spent, self._watch = self._watch, Stopwatch()
        for stage, seconds in spent.seconds.items():
            watch.add(stage, seconds)
        return images

    @property
    def _open(self) -> ImageBatch:
        if self._images is None:
            raise OptionError("the encoded image was closed; encode the image again")
        return self._images

    @property
    def _features(self) -> Tensor:
        return self._cache.features(self._open, self._watch)
