"""PaliGemma: pictures and a prompt in, an answer out. Reads in the order of the data."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from paligemma_edge.runtime import device as devices
from paligemma_edge.runtime.answer import Detection
from paligemma_edge.runtime.bundle import Bundle
from paligemma_edge.runtime.digests import comparing
from paligemma_edge.runtime.engine import Engine
from paligemma_edge.runtime.errors import ImageError, OptionError, PromptError
from paligemma_edge.runtime.generation import Generation
from paligemma_edge.runtime.grammar import Grammar
from paligemma_edge.runtime.image import ImageInput, load_image
from paligemma_edge.runtime.mask import paste_mask
from paligemma_edge.runtime.pictures import PictureEncoder, Pictures, read_pictures
from paligemma_edge.runtime.pipeline import (
    Asked,
    Options,
    Pipeline,
    Question,
)
from paligemma_edge.runtime.primed import primed_here
from paligemma_edge.runtime.prompt import PromptEncoder
from paligemma_edge.runtime.result import ChoiceResult, ObjectResult, TextResult
from paligemma_edge.runtime.sampling import Sampling
from paligemma_edge.runtime.stopwatch import Stopwatch
from paligemma_edge.runtime.typed import decoded_masks
from paligemma_edge.runtime.view import View

Images: TypeAlias = ImageInput | list[ImageInput] | tuple[ImageInput, ...]
DEFAULT_SLOTS = 4


class PaliGemma:
    """A bundle's variant, open on a device."""

    def __init__(
        self,
        bundle: str | os.PathLike[str],
        device: devices.DeviceName = "auto",
        variant: str | None = None,
        *,
        threads: int | None = None,
    ) -> None:
        """Verify the files of a variant and open its graphs, or those primed for this device.

        `device` "auto" takes CUDA where it is present and the bundle has a variant for it.
        `threads` defaults to the cores that the process may use. BundleError, DeviceError or
        OptionError say what stood in the way.
        """
        if not isinstance(bundle, str | os.PathLike):
            raise OptionError(f"the bundle is {bundle!r}, wanted the path of its folder")
        self.bundle = Bundle.open(bundle)
        manifest = self.bundle.manifest
        self.variant, chosen = devices.choose(manifest, device, variant)
        opened = devices.open_device(chosen.device, threads)
        self.primed = primed_here(self.bundle, self.variant)
        graph_files = self.bundle.variant_files(self.primed or chosen)
        self.verified_files = (*graph_files, manifest.tokenizer.file)
        with comparing(self.bundle, self.verified_files) as digests:
            pieces = digests.file(manifest.tokenizer.file)
            self.encoder = PromptEncoder(pieces, manifest.tokenizer)
            self.engine = Engine.open(chosen, opened, digests, self.primed)
        self.pipeline = Pipeline(self.engine, self.encoder, manifest)

    def look(self, image: Images) -> View:
        """Read a picture, or several given as a list, and encode it once for many prompts."""
        watch, images = Stopwatch(), _listed(image)
        if not images:
            raise PromptError("no picture was given, wanted at least one")
        with watch.measure("preprocess"):
            loaded = [load_image(one) for one in images]
            pictures = Pictures.of(loaded, self.bundle.manifest.image)
        return View(self.pipeline, pictures, watch, loaded[0])

    def answer(
        self,
        image: Images,
        prompt: str,
        *,
        grammar: bool = True,
        any_label: bool = False,
        max_new_tokens: int | None = None,
    ) -> TextResult | ObjectResult:
        """Objects for "detect cat" and "segment cat", else words; see `View.answer`."""
        return self.look(image).answer(
            prompt, grammar=grammar, any_label=any_label, max_new_tokens=max_new_tokens
        )

    def caption(
        self, image: Images, language: str = "en", *, max_new_tokens: int | None = None
    ) -> TextResult:
        """What a picture shows."""
        return self.look(image).caption(language, max_new_tokens=max_new_tokens)

    def ask(
        self,
        image: Images,
        question: str,
        language: str = "en",
        *,
        max_new_tokens: int | None = None,
    ) -> TextResult:
        """The answer to a question about a picture, or about several given as a list."""
        return self.look(image).ask(question, language, max_new_tokens=max_new_tokens)

    def read(self, image: Images, *, max_new_tokens: int | None = None) -> TextResult:
        """What is written in a picture."""
        return self.look(image).read(max_new_tokens=max_new_tokens)

    def detect(
        self,
        image: ImageInput,
        what: str | Iterable[str],
        *,
        grammar: bool = True,
        any_label: bool = False,
        max_new_tokens: int | None = None,
    ) -> ObjectResult:
        """Boxes of what "cat ; dog" or ["cat", "dog"] names; see `View.detect`."""
        return self.look(image).detect(
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
    ) -> ObjectResult:
        """Boxes and masks of what "cat ; dog" or ["cat", "dog"] names; see `View.segment`."""
        return self.look(image).segment(
            what, grammar=grammar, any_label=any_label, max_new_tokens=max_new_tokens
        )

    def classify(self, image: Images, prompt: str, choices: Iterable[str]) -> ChoiceResult:
        """The most likely one of a closed set of answers; see `View.classify`."""
        return self.look(image).classify(prompt, choices)

    def generate(
        self,
        image: Images,
        prompt: str,
        *,
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
        grammar: Grammar | None = None,
    ) -> Generation:
        """Answer any prompt about one picture, or about several given as a list.

        With a grammar, such as `Choices` or `Regex`, only what it allows is said.
        """
        (generation,) = self.generate_batch(
            [(image, prompt)],
            slots=1,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            grammar=grammar,
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
    ) -> Iterator[str]:
        """The text of `generate`, piece by piece; a character is never cut in two.

        Prompt and options are checked by the call, the picture is read with the first piece.
        """
        options = Options(max_new_tokens=max_new_tokens, sampling=sampling, grammar=grammar)
        images = _listed(image)
        question = self.pipeline.question(prompt, len(images), options)
        return self.pipeline.stream(self._asked([(images, question)]), question.capacity)

    def generate_batch(
        self,
        requests: Iterable[tuple[Images, str]],
        *,
        slots: int = DEFAULT_SLOTS,
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
        grammar: Grammar | None = None,
    ) -> list[Generation]:
        """Answer many prompts, `slots` of them at a time; the order is that of the requests.

        Each answer equals the one that `generate` gives alone. Prompts and options are checked
        first; a picture is read when a slot is free for it, and one that cannot be read ends the
        batch: the ImageError says which, as `requests[2]: ...`. A picture that several prompts
        are about is encoded once if they follow each other.
        """
        options = Options(max_new_tokens=max_new_tokens, sampling=sampling, grammar=grammar)
        slots = devices.check_count("slots", slots)
        questions = self._questions(requests, options)
        if not questions:
            return []
        capacity = max(question.capacity for _, question in questions)
        asked, slots = self._asked(questions), min(slots, len(questions))
        answers = dict(self.pipeline.answer(asked, slots=slots, capacity=capacity))
        return [answers[number] for number in range(len(questions))]

    def masks(
        self, detections: Sequence[Detection], width: int, height: int
    ) -> list[NDArray[np.float32] | None]:
        """Soft masks [height, width] in 0..1 of the detections that hold segmentation codes."""
        width, height = devices.check_count("width", width), devices.check_count("height", height)
        decoded = decoded_masks(detections, self.engine.decode_masks)
        return [
            None if mask is None else paste_mask(mask, detection.box, width, height)
            for detection, mask in zip(detections, decoded, strict=True)
        ]

    def _questions(
        self, requests: Iterable[tuple[Images, str]], options: Options
    ) -> list[tuple[tuple[ImageInput, ...], Question]]:
        if not isinstance(requests, Iterable):
            raise PromptError(f"the requests are {type(requests).__name__}, wanted a list of pairs")
        asked, questions = list(requests), []
        for number, request in enumerate(asked):
            with _telling_which(number, len(asked)):
                if not isinstance(request, list | tuple) or len(request) != 2:
                    found = type(request).__name__
                    raise PromptError(f"a {found} that is no pair, wanted (picture, prompt)")
                images = _listed(request[0])
                question = self.pipeline.question(request[1], len(images), options)
                questions.append((images, question))
        return questions

    def _asked(
        self, questions: Sequence[tuple[tuple[ImageInput, ...], Question]]
    ) -> Iterator[Asked]:
        """Read and encode the pictures of each question when it is asked for."""
        encoder = PictureEncoder(self.engine)
        for number, (images, question) in enumerate(questions):
            watch = Stopwatch()
            with _telling_which(number, len(questions)):
                pictures = read_pictures(images, self.bundle.manifest.image, watch)
            yield Asked(question, encoder.features(pictures, watch), watch)


def _listed(image: Images) -> tuple[ImageInput, ...]:
    return tuple(image) if isinstance(image, list | tuple) else (image,)


@contextmanager
def _telling_which(number: int, count: int) -> Iterator[None]:
    """Let an error name the one of several requests that it is about."""
    try:
        yield
    except (ImageError, PromptError) as error:
        if count == 1:
            raise
        raise type(error)(f"requests[{number}]: {error}") from None
