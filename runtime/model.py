"""PaliGemma: images and a prompt in, an answer out. Reads in the order of the data."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from paligemma_edge.runtime.bundle.bundle import Bundle
from paligemma_edge.runtime.bundle.digests import comparing
from paligemma_edge.runtime.encoded_image import EncodedImage
from paligemma_edge.runtime.engine.cache_plan import DEFAULT_MAX_BATCH
from paligemma_edge.runtime.engine.cache_pool import KVCachePool
from paligemma_edge.runtime.errors import OptionError, PromptError
from paligemma_edge.runtime.generation.pipeline import Pipeline
from paligemma_edge.runtime.generation.request import GenerationOptions
from paligemma_edge.runtime.generation.request_list import (
    Images,
    as_tuple,
    group_by_adapter,
    validate_requests,
)
from paligemma_edge.runtime.generation.sampling import Sampling
from paligemma_edge.runtime.grammar.base import Grammar
from paligemma_edge.runtime.images.batch import ImageBatch
from paligemma_edge.runtime.images.load import ImageInput, load_image
from paligemma_edge.runtime.loading.adapters import LoraAdapters
from paligemma_edge.runtime.loading.load import load_engine
from paligemma_edge.runtime.loading.options import cache_plan_for, device_for
from paligemma_edge.runtime.loading.prepacked import prepacked_here
from paligemma_edge.runtime.loading.variants import DeviceName, choose_variant
from paligemma_edge.runtime.results.build import decoded_masks
from paligemma_edge.runtime.results.generation import Generation
from paligemma_edge.runtime.results.mask import paste_mask
from paligemma_edge.runtime.results.result import ChoiceResult, ObjectResult, TextResult
from paligemma_edge.runtime.text.parse_answer import ParsedObject
from paligemma_edge.runtime.text.tokenizer import PromptEncoder
from paligemma_edge.runtime.timing import Stopwatch
from paligemma_edge.runtime.validation import check_count


class PaliGemma:
    """A bundle's variant, open on a device."""

    def __init__(
        self,
        bundle: str | os.PathLike[str],
        device: DeviceName = "auto",
        variant: str | None = None,
        *,
        threads: int | None = None,
        max_batch: int | None = None,
        max_length: int | None = None,
        memory_limit: int | None = None,
        cuda_graph: bool = False,
    ) -> None:
        """Verify the files of a variant and open its graphs, or those prepacked for this device.

        `device` "auto" takes CUDA where it is present and the bundle has a variant for it.
        `threads` defaults to the cores that the process may use. With `max_batch` answers at once
        or `max_length` tokens of image, prompt and answer, the keys and values are sized at
        load and one answer or batch is made at a time; without, each takes what it needs.
        `memory_limit` is in bytes of a GPU, and bounds what each graph may take there beside
        weights, keys and values. `cuda_graph` records the steps there, once for each number of
        slots and adapter, and replays them: such a model is for one thread. In a bundle with
        adapters its LoRA graphs are opened, which answer as the base too. BundleError,
        DeviceError or OptionError say what is in the way.
        """
        if not isinstance(bundle, str | os.PathLike):
            raise OptionError(f"the bundle is {bundle!r}, wanted the path of its folder")
        self.bundle = Bundle.open(bundle)
        manifest = self.bundle.manifest
        self.variant, chosen = choose_variant(manifest, device, variant)
        plan = cache_plan_for(manifest, chosen, max_batch, max_length, cuda_graph=cuda_graph)
        opened = device_for(manifest, chosen, plan, threads, memory_limit, cuda_graph=cuda_graph)
        if (lora_graphs := manifest.lora_graphs.get(self.variant)) is not None:
            self.bundle.check_graphs(lora_graphs)
        self.prepacked = None if lora_graphs else prepacked_here(self.bundle, self.variant)
        graph_files = self.bundle.variant_files(self.prepacked or chosen)
        lora_files = self.bundle.variant_files(lora_graphs) if lora_graphs else ()
        self.verified_files = (*graph_files, *lora_files, manifest.tokenizer.file)
        with comparing(self.bundle, self.verified_files) as digests:
            pieces = digests.file(manifest.tokenizer.file)
            self.encoder = PromptEncoder(pieces, manifest.tokenizer)
            self.engine = load_engine(chosen, opened, digests, self.prepacked, lora_graphs)
        self.cache_pool = KVCachePool(self.engine, plan)
        self.pipeline = Pipeline(self.engine, self.encoder, manifest, self.cache_pool)
        self._adapters = LoraAdapters(self.bundle, self.variant, self.engine)

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the LoRA adapters that can be switched to, one for each call."""
        return self._adapters.names

    def with_adapter(self, adapter: str | None) -> Pipeline:
        """What answers with an adapter, or as the base does; OptionError for one not there."""
        if adapter is None:
            return self.pipeline
        engine = self.engine.with_adapter(self._adapters.get(adapter))
        return dataclasses.replace(self.pipeline, engine=engine)

    def encode(self, image: Images, *, adapter: str | None = None) -> EncodedImage:
        """Read an image, or several given as a list, and encode it once for many prompts.

        With an `adapter` of the bundle, that adapter encodes the image and answers.
        """
        pipeline = self.with_adapter(adapter)
        watch, images = Stopwatch(), as_tuple(image)
        if not images:
            raise PromptError("no image was given, wanted at least one")
        with watch.measure("preprocess"):
            loaded = [load_image(one) for one in images]
            batch = ImageBatch.of(loaded, self.bundle.manifest.image)
        return EncodedImage(pipeline, batch, watch, loaded[0])

    def answer(
        self,
        image: Images,
        prompt: str,
        *,
        grammar: bool = True,
        any_label: bool = False,
        max_new_tokens: int | None = None,
        adapter: str | None = None,
    ) -> TextResult | ObjectResult:
        """Objects for "detect cat" and "segment cat", else words; see `EncodedImage.answer`."""
        return self.encode(image, adapter=adapter).answer(
            prompt, grammar=grammar, any_label=any_label, max_new_tokens=max_new_tokens
        )

    def caption(
        self,
        image: Images,
        language: str = "en",
        *,
        max_new_tokens: int | None = None,
        adapter: str | None = None,
    ) -> TextResult:
        """What an image shows."""
        return self.encode(image, adapter=adapter).caption(language, max_new_tokens=max_new_tokens)

    def ask(
        self,
        image: Images,
        question: str,
        language: str = "en",
        *,
        max_new_tokens: int | None = None,
        adapter: str | None = None,
    ) -> TextResult:
        """The answer to a question about an image, or about several given as a list."""
        return self.encode(image, adapter=adapter).ask(
            question, language, max_new_tokens=max_new_tokens
        )

    def read(
        self, image: Images, *, max_new_tokens: int | None = None, adapter: str | None = None
    ) -> TextResult:
        """What is written in an image."""
        return self.encode(image, adapter=adapter).read(max_new_tokens=max_new_tokens)

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
        image: Images,
        prompt: str,
        choices: Iterable[str],
        *,
        adapter: str | None = None,
    ) -> ChoiceResult:
        """The most likely one of a closed set of answers; see `EncodedImage.classify`."""
        return self.encode(image, adapter=adapter).classify(prompt, choices)

    def generate(
        self,
        image: Images,
        prompt: str,
        *,
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
        grammar: Grammar | None = None,
        adapter: str | None = None,
    ) -> Generation:
        """Answer any prompt about one image, or about several given as a list.

        With a grammar, such as `Choices` or `Regex`, the answer is one that it allows; with an
        adapter of the bundle it is that adapter's answer.
        """
        (generation,) = self.generate_batch(
            [(image, prompt)],
            slots=1,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            grammar=grammar,
            adapter=adapter,
        )
        return generation

    def stream(
        self,
        image: Images,
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
        pipeline = self.with_adapter(adapter)
        (request,) = validate_requests(pipeline, [(image, prompt)], options)
        return pipeline.stream(request)

    def generate_batch(
        self,
        requests: Iterable[tuple[Images, str]],
        *,
        slots: int | None = None,
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
        grammar: Grammar | None = None,
        adapter: str | Sequence[str | None] | None = None,
    ) -> list[Generation]:
        """Answer many prompts, `slots` of them at a time; the order is that of the requests.

        There are 4 slots by default, or as many as were planned. Each answer equals the one that
        `generate` gives alone, but for the last bits of 4-bit products and adapters. Prompts and
        options are checked first; an image is read when a slot is free for it, and one that cannot
        be read ends the batch: the ImageError says which, as `requests[2]: ...`. An image that
        several prompts are about is encoded once if they follow each other. `adapter` is one for
        all, or a list with one for each request; those with the same one are answered together.
        """
        options = GenerationOptions(
            max_new_tokens=max_new_tokens, sampling=sampling, grammar=grammar
        )
        slots = self.cache_pool.slots(slots, DEFAULT_MAX_BATCH)
        validated = validate_requests(self.pipeline, requests, options)
        groups = group_by_adapter(len(validated), adapter)
        # All of them first: an adapter that is absent is an error before anything is answered.
        pipelines = {name: self.with_adapter(name) for name in groups}
        answers: dict[int, Generation] = {}
        for name, places in groups.items():
            group = [validated[place] for place in places]
            capacity = max(request.capacity for request in group)
            count = min(slots, len(group))
            for number, answer in pipelines[name].answer(group, slots=count, capacity=capacity):
                answers[places[number]] = answer
        return [answers[place] for place in range(len(validated))]

    def masks(
        self, objects: Sequence[ParsedObject], width: int, height: int
    ) -> list[NDArray[np.float32] | None]:
        """Soft masks [height, width] in 0..1 of the objects that have segmentation codes."""
        width, height = check_count("width", width), check_count("height", height)
        decoded = decoded_masks(objects, self.engine.decode_masks)
        return [
            None if mask is None else paste_mask(mask, one.box, width, height)
            for one, mask in zip(objects, decoded, strict=True)
        ]
