"""PaliGemma: images and a prompt in, an answer out. Reads in the order of the data."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, Never, Self, overload

from paligemma_edge.runtime.batch_calls import BatchCalls
from paligemma_edge.runtime.bundle.bundle import Bundle
from paligemma_edge.runtime.encoded_image import EncodedImage
from paligemma_edge.runtime.engine.cache_plan import DEFAULT_MAX_BATCH_SIZE
from paligemma_edge.runtime.errors import ImageError, OptionError
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
from paligemma_edge.runtime.grammar.task_grammar import Labels
from paligemma_edge.runtime.images.load import ImageInput
from paligemma_edge.runtime.loading.loaded_model import LoadedModel, load_model
from paligemma_edge.runtime.loading.variants import DeviceName
from paligemma_edge.runtime.results.generation import Generation
from paligemma_edge.runtime.results.result import ChoiceResult, ObjectResult, TextResult
from paligemma_edge.runtime.timing import Stopwatch


class PaliGemma:
    """A bundle's variant, open on a device: images and a prompt in, an answer out.

    Each call takes one image: a path, the bytes of a file or a file that is open for reading in
    binary mode (JPEG, PNG, WebP, BMP, GIF, TIFF, AVIF), a PIL image, or a uint8 array
    [height, width, 3] whose channels are red, green, blue (OpenCV has them the other way round:
    `frame[..., ::-1]`); [height, width] is grey, a fourth channel is alpha. A file is turned as its
    EXIF orientation says, an image or array is taken as given. For many images use `batch`, for
    many prompts about one image, or a prompt about several, `encode`.

    Threads may share a model and call it at once: each answer then has keys and values of its own,
    and all share the cores. A model that was opened with `max_batch_size` or `max_length` makes one
    answer or batch at a time, and a call that comes meanwhile is a DeviceError; one with
    `cuda_graph` belongs to a single thread. An iterator that a call gives belongs to one thread.

    Args:
        bundle: folder that `paligemma-edge export` wrote, or its name on the Hugging Face Hub,
            "org/name" or "org/name@revision", for which the extra `hub` is needed. A folder of that
            name comes first, then what the Hub's cache holds, and a network last.
        device: "cpu", "cuda", or "auto" for CUDA where it is present and the bundle has a variant
            for it.
        variant: name of a variant, such as "cpu-int8"; `model.bundle.manifest.variants` has them.
            Default: the one that the bundle's maker marked, else the preferred one for the device
            whose estimated memory it has; `model.variant_reason` says why.
        threads: CPU threads; default: the cores that this process may use.
        max_batch_size: answers at a time that memory is allocated for at load; default: each call
            allocates what it needs.
        max_length: tokens of images, prompt and answer together that memory is allocated for.
        memory_limit: of a GPU, in bytes or with a unit as "6GB", "512MB", "4GiB"; bounds what the
            graphs may take there beside weights, keys and values. Default: what is free.
        cuda_graph: record the steps on a GPU once and replay them, which is faster.
        max_pixels: width x height of the largest image that is read, as a number or such as "50M";
            a larger one is an ImageError before it is decoded. Default: 268 million, which takes
            up to 2 GB while a photograph is read.

    Raises:
        BundleError: the bundle is missing, damaged or of another version, or cannot be fetched.
        MissingExtraError: it is no folder, and the package for names on the Hub is not installed.
        DeviceError: the device is missing, or has too little memory.
        OptionError: an option cannot be used, or the bundle has no such variant.

    Example:
        >>> with PaliGemma("mix.bundle") as model:
        ...     print(model.caption("street.jpg"))
        ...     for one in model.detect("street.jpg", ["car", "person"]):
        ...         print(one.label, one.confidence, one.xyxy)
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
        max_pixels: int | str | None = None,
    ) -> None:
        self._still_open: LoadedModel | None = load_model(
            bundle,
            device,
            variant,
            threads=threads,
            max_batch_size=max_batch_size,
            max_length=max_length,
            memory_limit=memory_limit,
            cuda_graph=cuda_graph,
            max_pixels=max_pixels,
        )
        self._bundle, self._variant = self._loaded.bundle, self._loaded.variant
        self._variant_reason = self._loaded.variant_reason

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
    def variant_reason(self) -> str:
        """Why this variant is open, in one sentence."""
        return self._variant_reason

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
        """Read an image, and encode it once for many prompts.

        Args:
            image: a path, bytes, a binary file, a uint8 RGB array or a PIL image.
            more_images: with these, each prompt is about all of them together.
            adapter: LoRA adapter of the bundle that encodes and answers; default: the base model.

        Returns:
            An EncodedImage, which has the same calls as the model without their image.

        Raises:
            ImageError: an image cannot be read.
            OptionError: `image` is a list, or there is no such adapter.

        Example:
            >>> with model.encode("before.jpg", "after.jpg") as both:
            ...     print(both.ask("what has changed?"))
        """
        for one in (image, *more_images):
            refuse_list(one)
        pipeline, watch = self._loaded.with_adapter(adapter), Stopwatch()
        with watch.measure("preprocess"):
            first = pipeline.images.load(image)
            others = map(pipeline.images.load, more_images)
            batch = pipeline.images.preprocess(itertools.chain([first], others))
        return EncodedImage(pipeline, batch, watch, first)

    @overload
    def batch(
        self,
        images: Iterable[ImageInput],
        *,
        max_batch_size: int | None = None,
        adapter: str | None = None,
        on_error: Literal["raise"] = "raise",
    ) -> BatchCalls[Never]: ...

    @overload
    def batch(
        self,
        images: Iterable[ImageInput],
        *,
        max_batch_size: int | None = None,
        adapter: str | None = None,
        on_error: Literal["return"],
    ) -> BatchCalls[ImageError]: ...

    def batch(
        self,
        images: Iterable[ImageInput],
        *,
        max_batch_size: int | None = None,
        adapter: str | None = None,
        on_error: Literal["raise", "return"] = "raise",
    ) -> BatchCalls[Never] | BatchCalls[ImageError]:
        """Many images, for one prompt at a time that is answered about each of them.

        Args:
            images: any iterable of images, such as a list of paths or a generator of arrays; it is
                read as results are. An iterator serves one call, a list any number.
            max_batch_size: images that are answered at a time; default: 4, or as many as the model
                was opened for.
            adapter: LoRA adapter of the bundle that answers; default: the base model.
            on_error: "raise" ends the batch with the ImageError of an image that cannot be read,
                after all results before it; "return" gives that error in place of its result.

        Returns:
            Calls `caption`, `ask`, `ocr`, `detect`, `segment`, `classify` and `run`, each of which
            gives an iterator of results in the order of the images.

        Raises:
            OptionError: `images` is only one image, an option cannot be used, or there is no such
                adapter.

        Example:
            >>> paths = sorted(Path("photos").glob("*.jpg"))
            >>> for path, result in zip(paths, model.batch(paths).detect("cat")):
            ...     print(path, [one.xyxy for one in result])
        """
        if on_error not in ("raise", "return"):
            raise OptionError(f'on_error is {on_error!r}, wanted "raise" or "return"')
        pipeline, keep_errors = self._loaded.with_adapter(adapter), on_error == "return"
        slots = pipeline.cache_pool.slots(max_batch_size, DEFAULT_MAX_BATCH_SIZE)
        if keep_errors:
            return BatchCalls[ImageError](pipeline, images, slots, keep_errors=True)
        return BatchCalls[Never](pipeline, images, slots, keep_errors=False)

    def caption(
        self,
        image: ImageInput,
        language: str = "en",
        *,
        max_new_tokens: int | None = None,
        adapter: str | None = None,
    ) -> TextResult:
        """Say what an image shows.

        Args:
            image: a path, bytes, a binary file, a uint8 RGB array or a PIL image.
            language: of the caption, such as "en" or "de".
            max_new_tokens: tokens of the answer at most; default: 256, or what the model holds.
            adapter: LoRA adapter of the bundle that answers; default: the base model.

        Returns:
            A TextResult; `str()` of it is the caption.

        Raises:
            ImageError: the image cannot be read.
            PromptError: the language is no code, or the answer does not fit into the model.
            OptionError: `image` is a list, an option cannot be used, or there is no such adapter.

        Example:
            >>> str(model.caption("street.jpg"))
            'a red car on a street'
        """
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
        """Answer a question about an image.

        Args:
            image: a path, bytes, a binary file, a uint8 RGB array or a PIL image.
            question: such as "how many cars are there?".
            language: of the answer, such as "en" or "de".
            max_new_tokens: tokens of the answer at most; default: 256, or what the model holds.
            adapter: LoRA adapter of the bundle that answers; default: the base model.

        Returns:
            A TextResult; `str()` of it is the answer.

        Raises:
            ImageError: the image cannot be read.
            PromptError: the question is empty or does not fit into the model, or the language is no
                code.
            OptionError: `image` is a list, an option cannot be used, or there is no such adapter.

        Example:
            >>> str(model.ask("street.jpg", "what colour is the car?"))
            'red'
        """
        return self.encode(image, adapter=adapter).ask(
            question, language, max_new_tokens=max_new_tokens
        )

    def ocr(
        self, image: ImageInput, *, max_new_tokens: int | None = None, adapter: str | None = None
    ) -> TextResult:
        """Read what is written in an image.

        Args:
            image: a path, bytes, a binary file, a uint8 RGB array or a PIL image.
            max_new_tokens: tokens of the answer at most; default: 256, or what the model holds.
            adapter: LoRA adapter of the bundle that answers; default: the base model.

        Returns:
            A TextResult; `str()` of it is what is written.

        Raises:
            ImageError: the image cannot be read.
            PromptError: the answer does not fit into the model.
            OptionError: `image` is a list, an option cannot be used, or there is no such adapter.

        Example:
            >>> str(model.ocr("sign.jpg"))
            'STOP'
        """
        return self.encode(image, adapter=adapter).ocr(max_new_tokens=max_new_tokens)

    def detect(
        self,
        image: ImageInput,
        what: str | Iterable[str],
        *,
        constrained: bool = True,
        labels: Labels = "any",
        classes: Sequence[str] | None = None,
        max_new_tokens: int | None = None,
        adapter: str | None = None,
    ) -> ObjectResult:
        """Find objects in an image: boxes with labels.

        Args:
            image: a path, bytes, a binary file, a uint8 RGB array or a PIL image.
            what: a text is asked as it is, `detect cat ; dog` for "cat ; dog"; a list is put into
                that form, ["cat", "dog"] too.
            constrained: choose only tokens of the form of such an answer, so that it always parses.
                Where the model would not begin with an object there is none, and its own words are
                in the result's `text`. False lets it say anything.
            labels: "any" leaves labels to the model; "asked" allows those of `what` alone.
            classes: names that `class_id` counts, the same for all your images; by default those
                that `what` asks for.
            max_new_tokens: tokens of the answer at most; default: 256, or what the model holds.
            adapter: LoRA adapter of the bundle that answers; default: the base model.

        Returns:
            An ObjectResult of Detections, whose `xyxy` is x0, y0, x1, y1 in pixels.

        Raises:
            ImageError: the image cannot be read.
            PromptError: `what` names nothing, or a label that no answer can hold, or does not fit.
            OptionError: `image` is a list, options do not go together, or there is no such adapter.

        Example:
            >>> for one in model.detect("street.jpg", ["car", "person"]):
            ...     print(one.label, one.confidence, one.xyxy)
        """
        return self.encode(image, adapter=adapter).detect(
            what,
            constrained=constrained,
            labels=labels,
            classes=classes,
            max_new_tokens=max_new_tokens,
        )

    def segment(
        self,
        image: ImageInput,
        what: str | Iterable[str],
        *,
        constrained: bool = True,
        labels: Labels = "any",
        classes: Sequence[str] | None = None,
        max_new_tokens: int | None = None,
        adapter: str | None = None,
    ) -> ObjectResult:
        """Find objects in an image: boxes with labels and masks.

        Args:
            image: a path, bytes, a binary file, a uint8 RGB array or a PIL image.
            what: as for `detect`.
            constrained: as for `detect`.
            labels: as for `detect`.
            classes: as for `detect`.
            max_new_tokens: tokens of the answer at most; an object takes about 25.
            adapter: LoRA adapter of the bundle that answers; default: the base model.

        Returns:
            An ObjectResult of Detections that have a `mask`, bool [height, width]; where the bundle
            has no mask decoder, boxes alone and a note.

        Raises:
            ImageError: the image cannot be read.
            PromptError: as for `detect`.
            OptionError: as for `detect`.

        Example:
            >>> for one in model.segment("street.jpg", "car"):
            ...     print(one.xyxy, one.mask.sum())
        """
        return self.encode(image, adapter=adapter).segment(
            what,
            constrained=constrained,
            labels=labels,
            classes=classes,
            max_new_tokens=max_new_tokens,
        )

    def classify(
        self,
        image: ImageInput,
        prompt: str,
        choices: Iterable[str],
        *,
        adapter: str | None = None,
    ) -> ChoiceResult:
        """Choose the most likely one of a closed set of answers about an image.

        Args:
            image: a path, bytes, a binary file, a uint8 RGB array or a PIL image.
            prompt: a whole prompt, such as "answer en is it raining?".
            choices: the answers, such as ["yes", "no"]; a beginning that they share is read once.
            adapter: LoRA adapter of the bundle that answers; default: the base model.

        Returns:
            A ChoiceResult with the probability of each.

        Raises:
            ImageError: the image cannot be read.
            PromptError: the prompt cannot be used.
            OptionError: `image` is a list, there are no choices, one of them is empty or given
                twice, or there is no such adapter.

        Example:
            >>> model.classify("street.jpg", "answer en is it raining?", ["yes", "no"]).text
            'no'
        """
        return self.encode(image, adapter=adapter).classify(prompt, choices)

    def run(
        self,
        image: ImageInput,
        prompt: str,
        *,
        constrained: bool = True,
        labels: Labels = "any",
        classes: Sequence[str] | None = None,
        max_new_tokens: int | None = None,
        adapter: str | None = None,
    ) -> TextResult | ObjectResult:
        """Ask a whole prompt about an image, exactly as it is typed.

        Args:
            image: a path, bytes, a binary file, a uint8 RGB array or a PIL image.
            prompt: such as "caption en", "answer en where is it?", "detect cat ; dog". What begins
                with `detect` or `segment` is answered with objects, all else with words.
            constrained: as for `detect`; of no effect on words.
            labels: as for `detect`.
            classes: as for `detect`.
            max_new_tokens: tokens of the answer at most; default: 256, or what the model holds.
            adapter: LoRA adapter of the bundle that answers; default: the base model.

        Returns:
            An ObjectResult or a TextResult.

        Raises:
            ImageError: the image cannot be read.
            PromptError: the prompt asks for nothing, as `detect` alone, or is too long.
            OptionError: `image` is a list, options do not go together, or there is no such adapter.

        Example:
            >>> str(model.run("street.jpg", "caption de"))
            'ein rotes Auto auf einer Straße'
        """
        return self.encode(image, adapter=adapter).run(
            prompt,
            constrained=constrained,
            labels=labels,
            classes=classes,
            max_new_tokens=max_new_tokens,
        )

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
        """Answer any prompt about an image; the text is not interpreted.

        Args:
            image: a path, bytes, a binary file, a uint8 RGB array or a PIL image.
            prompt: a whole prompt, asked as it is typed.
            max_new_tokens: tokens of the answer at most; default: 256, or what the model holds.
            sampling: such as TopSampling(temperature=0.7); default: the most likely token.
            grammar: such as Choices or Regex, that the answer is held to; default: any text.
            adapter: LoRA adapter of the bundle that answers; default: the base model.

        Returns:
            A Generation: text, tokens, their log-probabilities, why it ended, seconds by stage.

        Raises:
            ImageError: the image cannot be read.
            PromptError: the prompt does not fit into the model.
            OptionError: `image` is a list, an option cannot be used, or there is no such adapter.

        Example:
            >>> model.generate("sign.jpg", "ocr", grammar=Regex("[0-9]+")).text
            '30'
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

        Args:
            image: a path, bytes, a binary file, a uint8 RGB array or a PIL image; it is read with
                the first piece.
            prompt: as for `generate`.
            max_new_tokens: as for `generate`.
            sampling: as for `generate`.
            grammar: as for `generate`.
            adapter: as for `generate`.

        Returns:
            An iterator of pieces of text. The answer is made as it is read.

        Raises:
            PromptError: as for `generate`, by the call itself.
            OptionError: as for `generate`, by the call itself.
            ImageError: the image cannot be read, with the first piece.

        Example:
            >>> for piece in model.stream("street.jpg", "caption en"):
            ...     print(piece, end="", flush=True)
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
        """Answer many prompts, each about its own image or images.

        Each answer equals the one that `generate` gives alone, but for the last bits of 4-bit
        products and adapters. Prompts and options are checked first; an image is read when a slot
        is free for it. An image that several prompts are about is encoded once if they follow each
        other.

        Args:
            requests: pairs of an image and a prompt; for several images that a prompt is about, a
                list of them in the place of the image.
            max_batch_size: answers at a time; default: 4, or as many as the model was opened for.
            max_new_tokens: as for `generate`.
            sampling: as for `generate`.
            grammar: as for `generate`.
            adapter: one for all, or a list with one for each request; those with the same one are
                answered together.

        Returns:
            A Generation for each request, in their order.

        Raises:
            ImageError: an image cannot be read; it says which, as `requests[2]: ...`.
            PromptError: a prompt cannot be used; it says which.
            OptionError: an option cannot be used, or there is no such adapter.

        Example:
            >>> pairs = [("a.jpg", "caption en"), ("b.jpg", "ocr")]
            >>> [one.text for one in model.generate_batch(pairs)]
            ['a red car', 'STOP']
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
