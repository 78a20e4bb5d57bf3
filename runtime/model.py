"""PaliGemma: images and a prompt in, an answer out. Reads in the order of the data."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Self

from paligemma_edge.runtime.bundle.bundle import Bundle
from paligemma_edge.runtime.encoded_image import EncodedImage
from paligemma_edge.runtime.engine.cache_plan import DEFAULT_MAX_BATCH_SIZE
from paligemma_edge.runtime.errors import OptionError
from paligemma_edge.runtime.generation.pipeline import Pipeline
from paligemma_edge.runtime.generation.request import GenerationOptions, Request
from paligemma_edge.runtime.generation.request_list import (
    Images,
    group_by_adapter,
    refuse_list,
    validate_requests,
)
from paligemma_edge.runtime.generation.sampling import Sampling
from paligemma_edge.runtime.grammar.base import Grammar
from paligemma_edge.runtime.images.batch import ImageBatch
from paligemma_edge.runtime.images.load import ImageInput, load_image
from paligemma_edge.runtime.loading.loaded_model import LoadedModel, load_model
from paligemma_edge.runtime.loading.variants import DeviceName
from paligemma_edge.runtime.results.generation import Generation
from paligemma_edge.runtime.results.result import ChoiceResult, ObjectResult, TextResult
from paligemma_edge.runtime.timing import Stopwatch


class PaliGemma:
    """A bundle's variant, open on a device.

    Example:
        >>> with PaliGemma("mix.bundle") as model:
        ...     print(model.caption("street.jpg"))
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str],
        device: DeviceName = "auto",
        variant: str | None = None,
        *,
        threads: int | None = None,
        max_batch_size: int | None = None,
        max_length: int | None = None,
        memory_limit: int | str | None = None,
        cuda_graph: bool = False,
    ) -> None:
        """Verify the files of a variant and open its graphs, or those prepacked for this device.

        `device` "auto" takes CUDA where it is present and the bundle has a variant for it.
        `threads` defaults to the cores that the process may use. With `max_batch_size` answers at
        once or `max_length` tokens of image, prompt and answer, the keys and values are sized at
        load and one answer or batch is made at a time; without, each takes what it needs.
        `memory_limit` is in bytes of a GPU, or a text with a unit such as "6GB", and bounds what
        each graph may take there beside weights, keys and values. `cuda_graph` records the steps
        there, once for each number of slots and adapter, and replays them: such a model is for one
        thread. In a bundle with adapters its LoRA graphs are opened, which answer as the base too.
        BundleError, DeviceError or OptionError say what is in the way.
        """
        self._still_open: LoadedModel | None = load_model(
            bundle,
            device,
            variant,
            threads=threads,
            max_batch_size=max_batch_size,
            max_length=max_length,
            memory_limit=memory_limit,
            cuda_graph=cuda_graph,
        )
        self._bundle, self._variant = self._loaded.bundle, self._loaded.variant

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        closed = ", closed" if self._still_open is None else ""
        name, device = str(self._bundle.path), self.device
        return f"PaliGemma({name!r}, variant={self._variant!r}, device={device!r}{closed})"

    def close(self) -> None:
        """Give the graphs and their memory back; OptionError for any call after it.

        An `EncodedImage` or a stream that is still in use keeps them until it ends too.
        """
        self._still_open = None

    @property
    def bundle(self) -> Bundle:
        """The bundle that was opened, with its manifest."""
        return self._bundle

    @property
    def variant(self) -> str:
        """The name of the variant that is open."""
        return self._variant

    @property
    def device(self) -> str:
        """Where it runs, "cpu" or "cuda"."""
        return self._bundle.manifest.variants[self._variant].device

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the LoRA adapters that can be switched to, one for each call."""
        return self._loaded.adapters.names

    def encode(
        self, image: ImageInput, *more_images: ImageInput, adapter: str | None = None
    ) -> EncodedImage:
        """Read an image and encode it once for many prompts.

        With several images each prompt is about all of them together. With an `adapter` of the
        bundle, that adapter encodes the images and answers.
        """
        for one in (image, *more_images):
            refuse_list(one)
        pipeline, watch = self._loaded.with_adapter(adapter), Stopwatch()
        with watch.measure("preprocess"):
            loaded = [load_image(one) for one in (image, *more_images)]
            batch = ImageBatch.of(loaded, self._bundle.manifest.image)
        return EncodedImage(pipeline, batch, watch, loaded[0])

    def run(
        self,
        image: ImageInput,
        prompt: str,
        *,
        grammar: bool = True,
        any_label: bool = False,
        max_new_tokens: int | None = None,
        adapter: str | None = None,
    ) -> TextResult | ObjectResult:
        """Objects for "detect cat" and "segment cat", else words; see `EncodedImage.run`."""
        return self.encode(image, adapter=adapter).run(
            prompt, grammar=grammar, any_label=any_label, max_new_tokens=max_new_tokens
        )

    def caption(
        self,
        image: ImageInput,
        language: str = "en",
        *,
        max_new_tokens: int | None = None,
        adapter: str | None = None,
    ) -> TextResult:
        """What an image shows."""
        return self.encode(image, adapter=adapter).caption(language, max_new_tokens=max_new_tokens)

    def ask(
        self,
        image: ImageInput,
        question: str,
        language: str = "en",
        *,
        max_new_tokens: int | None = None,
        adapter: str | None = None,
    ) -> TextResult:
        """The answer to a question about an image."""
        return self.encode(image, adapter=adapter).ask(
            question, language, max_new_tokens=max_new_tokens
        )

    def ocr(
        self, image: ImageInput, *, max_new_tokens: int | None = None, adapter: str | None = None
    ) -> TextResult:
        """What is written in an image."""
        return self.encode(image, adapter=adapter).ocr(max_new_tokens=max_new_tokens)

    def detect(
        self,
        image: ImageInput,
        what: str | Iterable[str],
        *,
        grammar: bool = True,
        any_label: bool = False,
        max_new_tokens: int | None = None,
        adapter: str | None = None,
    ) -> ObjectResult:
        """Boxes of what "cat ; dog" or ["cat", "dog"] names; see `EncodedImage.detect`."""
        return self.encode(image, adapter=adapter).detect(
            what, grammar=grammar, any_label=any_label, max_new_tokens=max_new_tokens
        )

    def segment(
        self,
        image: ImageInput,
        what: str | Iterable[str],
        *,
        grammar: bool = True,
        any_label: bool = False,
        max_new_tokens: int | None = None,
        adapter: str | None = None,
    ) -> ObjectResult:
        """Boxes and masks of what "cat ; dog" names; see `EncodedImage.segment`."""
        return self.encode(image, adapter=adapter).segment(
            what, grammar=grammar, any_label=any_label, max_new_tokens=max_new_tokens
        )

    def classify(
        self,
        image: ImageInput,
        prompt: str,
        choices: Iterable[str],
        *,
        adapter: str | None = None,
    ) -> ChoiceResult:
        """The most likely one of a closed set of answers; see `EncodedImage.classify`."""
        return self.encode(image, adapter=adapter).classify(prompt, choices)

    def generate(
        self,
        image: ImageInput,
        prompt: str,
        *,
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
        grammar: Grammar | None = None,
        adapter: str | None = None,
    ) -> Generation:
        """Answer any prompt about an image.

        With a grammar, such as `Choices` or `Regex`, the answer is one that it allows; with an
        adapter of the bundle it is that adapter's answer.
        """
        options = GenerationOptions(
            max_new_tokens=max_new_tokens, sampling=sampling, grammar=grammar
        )
        pipeline, request = self._request(image, prompt, options, adapter)
        return pipeline.answer_one(request)

    def stream(
        self,
        image: ImageInput,
        prompt: str,
        *,
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
        grammar: Grammar | None = None,
        adapter: str | None = None,
    ) -> Iterator[str]:
        """The text of `generate`, piece by piece; a character is never cut in two.

        Prompt and options are checked by the call, the image is read with the first piece.
        """
        options = GenerationOptions(
            max_new_tokens=max_new_tokens, sampling=sampling, grammar=grammar
        )
        pipeline, request = self._request(image, prompt, options, adapter)
        return pipeline.stream(request)

    def generate_batch(
        self,
        requests: Iterable[tuple[Images, str]],
        *,
        max_batch_size: int | None = None,
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
        grammar: Grammar | None = None,
        adapter: str | Sequence[str | None] | None = None,
    ) -> list[Generation]:
        """Answer many prompts, `max_batch_size` at a time; the order is that of the requests.

        By default there are 4 at a time, or as many as the model was opened for. Each answer equals
        the one that `generate` gives alone, but for the last bits of 4-bit products and adapters.
        Prompts and options are checked first; an image is read when a slot is free for it, and one
        that cannot be read ends the batch: the ImageError says which, as `requests[2]: ...`. An
        image that several prompts are about is encoded once if they follow each other. `adapter` is
        one for all, or a list with one for each request; those with the same one are answered
        together.
        """
        options = GenerationOptions(
            max_new_tokens=max_new_tokens, sampling=sampling, grammar=grammar
        )
        loaded = self._loaded
        slots = loaded.pipeline.cache_pool.slots(max_batch_size, DEFAULT_MAX_BATCH_SIZE)
        validated = validate_requests(loaded.pipeline, requests, options)
        groups = group_by_adapter(len(validated), adapter)
        # All of them first: an adapter that is absent is an error before anything is answered.
        pipelines = {name: loaded.with_adapter(name) for name in groups}
        answers: dict[int, Generation] = {}
        for name, places in groups.items():
            group = [validated[place] for place in places]
            capacity = max(request.capacity for request in group)
            count = min(slots, len(group))
            for number, answer in pipelines[name].answer(group, slots=count, capacity=capacity):
                answers[places[number]] = answer
        return [answers[place] for place in range(len(validated))]

    def _request(
        self, image: ImageInput, prompt: str, options: GenerationOptions, adapter: str | None
    ) -> tuple[Pipeline, Request]:
        """A request that was checked, whose image is not read yet, and what answers it."""
        refuse_list(image)
        pipeline = self._loaded.with_adapter(adapter)
        return pipeline, pipeline.request_about([image], prompt, options)

    @property
    def _loaded(self) -> LoadedModel:
        if self._still_open is None:
            raise OptionError(f"the model of {self._bundle.path} was closed; open the bundle again")
        return self._still_open
