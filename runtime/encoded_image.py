"""An image that was encoded once, for any number of prompts.

What is kept are the vision features. The decoder's keys and values cannot be kept: a PaliGemma
prompt sees itself whole, image included, so another prompt changes them all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Self

from PIL import Image

from paligemma_edge.runtime.engine.engine import Tensor
from paligemma_edge.runtime.errors import OptionError
from paligemma_edge.runtime.generation.feature_cache import ImageFeatureCache
from paligemma_edge.runtime.generation.pipeline import Pipeline
from paligemma_edge.runtime.generation.request import GenerationOptions, Request
from paligemma_edge.runtime.generation.sampling import Sampling
from paligemma_edge.runtime.grammar.base import Grammar
from paligemma_edge.runtime.grammar.choices import Choices
from paligemma_edge.runtime.grammar.task_grammar import task_grammar
from paligemma_edge.runtime.images.batch import ImageBatch
from paligemma_edge.runtime.results.build import DecodeMasks, object_result, text_result
from paligemma_edge.runtime.results.generation import Generation
from paligemma_edge.runtime.results.result import ChoiceResult, ObjectResult, TextResult
from paligemma_edge.runtime.text.tasks import Task
from paligemma_edge.runtime.timing import Stopwatch


class EncodedImage:
    """One image, or several that a prompt is about together; features are made on first use."""

    def __init__(
        self,
        pipeline: Pipeline,
        images: ImageBatch,
        watch: Stopwatch | None = None,
        image: Image.Image | None = None,
        features: ImageFeatureCache | None = None,
    ) -> None:
        """`image` is what results show in a notebook; `features` may hold these images already."""
        self._pipeline = pipeline
        self._cache = features or ImageFeatureCache(pipeline.engine)
        self._images: ImageBatch | None = images
        self._watch = watch or Stopwatch()
        self._image = image

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the features back; no prompt is answered any more."""
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
        """Answer any prompt; the text is not interpreted."""
        options = GenerationOptions(
            max_new_tokens=max_new_tokens, sampling=sampling, grammar=grammar
        )
        return self._answer(prompt, options)

    def stream(
        self,
        prompt: str,
        *,
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
        grammar: Grammar | None = None,
    ) -> Iterator[str]:
        """The text of `generate`, piece by piece; a character is never cut in two."""
        options = GenerationOptions(
            max_new_tokens=max_new_tokens, sampling=sampling, grammar=grammar
        )
        request = self._request(prompt, options)
        return self._pipeline.stream(request, self._cache)

    def run(
        self,
        prompt: str,
        *,
        grammar: bool = True,
        any_label: bool = False,
        max_new_tokens: int | None = None,
    ) -> TextResult | ObjectResult:
        """The answer to a whole prompt: objects for "detect cat" and "segment cat", else words."""
        task = Task.of(prompt)
        if task.labels is None:
            return self._words(task, max_new_tokens)
        return self._objects(task, grammar, any_label, max_new_tokens)

    def caption(self, language: str = "en", *, max_new_tokens: int | None = None) -> TextResult:
        """What the image shows."""
        return self._words(Task.caption(language), max_new_tokens)

    def ask(
        self,
        question: str,
        language: str = "en",
        *,
        max_new_tokens: int | None = None,
    ) -> TextResult:
        """The answer to a question about the image."""
        return self._words(Task.ask(question, language), max_new_tokens)

    def ocr(self, *, max_new_tokens: int | None = None) -> TextResult:
        """What is written in the image."""
        return self._words(Task.read(), max_new_tokens)

    def detect(
        self,
        what: str | Iterable[str],
        *,
        grammar: bool = True,
        any_label: bool = False,
        max_new_tokens: int | None = None,
    ) -> ObjectResult:
        """Boxes of what "cat ; dog" or ["cat", "dog"] names.

        With `grammar` only tokens that such an answer allows are chosen, so that it always
        parses; `any_label` lets it hold labels that the prompt does not name. PromptError for a
        label that an answer cannot hold.
        """
        return self._objects(Task.detect(what), grammar, any_label, max_new_tokens)

    def segment(
        self,
        what: str | Iterable[str],
        *,
        grammar: bool = True,
        any_label: bool = False,
        max_new_tokens: int | None = None,
    ) -> ObjectResult:
        """Boxes and masks; as `detect`. Boxes alone, and a note, without a mask decoder."""
        return self._objects(Task.segment(what), grammar, any_label, max_new_tokens)

    def classify(self, prompt: str, choices: Iterable[str]) -> ChoiceResult:
        """The most likely one of a closed set of answers, with the likelihood of each.

        Beginnings that answers share are read once. PromptError or OptionError for a prompt or
        a set that cannot be used.
        """
        allowed = Choices.of(choices)
        longest = allowed.longest(self._pipeline.encoder)
        request = self._request(prompt, GenerationOptions(max_new_tokens=longest))
        scores = self._pipeline.score(request, self._features, allowed)
        best = max(scores, key=lambda choice: scores[choice])
        return ChoiceResult(prompt=prompt, text=best, log_probs=scores, image=self._image)

    def _words(self, task: Task, max_new_tokens: int | None) -> TextResult:
        generation = self._answer(task.prompt, GenerationOptions(max_new_tokens=max_new_tokens))
        return text_result(generation, self._image)

    def _objects(
        self, task: Task, grammar: bool, any_label: bool, max_new_tokens: int | None
    ) -> ObjectResult:
        if self._open.count > 1:
            raise OptionError(
                f"{self._open.count} images were given, wanted one: a box lies in one image; "
                "encode each of them alone"
            )
        rules = task_grammar(task, "any" if any_label else "asked") if grammar else None
        options = GenerationOptions(max_new_tokens=max_new_tokens, grammar=rules)
        generation = self._answer(task.prompt, options)
        return object_result(
            task,
            generation,
            self._size,
            self._decode_masks,
            constrained=grammar,
            image=self._image,
        )

    def _answer(self, prompt: str, options: GenerationOptions) -> Generation:
        return self._pipeline.answer_one(self._request(prompt, options), self._cache)

    def _request(self, prompt: str, options: GenerationOptions) -> Request:
        return self._pipeline.request(prompt, self._open.count, options).about(self._read)

    def _read(self, watch: Stopwatch) -> ImageBatch:
        """The images; an answer's seconds include what was spent on them, whoever came first."""
        images, _ = self._open, self._features
        for stage, seconds in self._watch.seconds.items():
            watch.add(stage, seconds)
        return images

    @property
    def _open(self) -> ImageBatch:
        if self._images is None:
            raise OptionError("the encoded image was closed; encode the image again")
        return self._images

    @property
    def _size(self) -> tuple[int, int]:
        return self._open.width, self._open.height

    @property
    def _features(self) -> Tensor:
        return self._cache.features(self._open, self._watch)

    @property
    def _decode_masks(self) -> DecodeMasks:
        engine = self._pipeline.engine
        return engine.decode_masks if engine.decodes_masks else None
