"""PaliGemma: pictures and a prompt in, an answer out. Reads in the order of the data."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from paligemma_edge.runtime import device as devices
from paligemma_edge.runtime.answer import Answer, Detection, parse
from paligemma_edge.runtime.bundle import Bundle
from paligemma_edge.runtime.cache import Cache
from paligemma_edge.runtime.digests import comparing
from paligemma_edge.runtime.engine import Engine
from paligemma_edge.runtime.errors import ImageError, OptionError, PromptError
from paligemma_edge.runtime.generate import Request, generate
from paligemma_edge.runtime.image import ImageInput, load_image, pixel_values
from paligemma_edge.runtime.mask import paste_mask
from paligemma_edge.runtime.primed import primed_here
from paligemma_edge.runtime.prompt import PromptEncoder, TextStream
from paligemma_edge.runtime.sampling import Greedy, Sampling
from paligemma_edge.runtime.stopwatch import Stage, Stopwatch

Images = ImageInput | list[ImageInput] | tuple[ImageInput, ...]
DEFAULT_MAX_NEW_TOKENS = 256
DEFAULT_SLOTS = 4


@dataclass(frozen=True)
class Generation:
    """What the model said to one prompt.

    `token_ids` ends with the end-of-sequence id unless the answer was cut by its token limit,
    which `truncated` tells. `seconds` holds the time that each stage took.
    """

    prompt: str
    text: str
    token_ids: tuple[int, ...]
    truncated: bool
    seconds: dict[Stage, float] = field(compare=False)

    @property
    def answer(self) -> Answer:
        """The boxes and segmentation codes that the text holds."""
        return parse(self.text)


@dataclass(frozen=True)
class _Question:
    """A prompt that was checked; its pictures are read when a slot is free."""

    images: tuple[ImageInput, ...]
    prompt: str
    ids: tuple[int, ...]


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

    def generate(
        self,
        image: Images,
        prompt: str,
        *,
        max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
        sampling: Sampling | None = None,
    ) -> Generation:
        """Answer one prompt about one picture, or about several given as a list."""
        (generation,) = self.generate_batch(
            [(image, prompt)], slots=1, max_new_tokens=max_new_tokens, sampling=sampling
        )
        return generation

    def stream(
        self,
        image: Images,
        prompt: str,
        *,
        max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
        sampling: Sampling | None = None,
    ) -> Iterator[str]:
        """The text of `generate`, piece by piece; a character is never cut in two.

        Prompt and options are checked by the call, the picture is read with the first piece.
        """
        questions = [self._question(image, prompt)]
        return self._pieces(self._run(questions, [Stopwatch()], 1, max_new_tokens, sampling))

    def generate_batch(
        self,
        requests: Iterable[tuple[Images, str]],
        *,
        slots: int = DEFAULT_SLOTS,
        max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
        sampling: Sampling | None = None,
    ) -> list[Generation]:
        """Answer many prompts, `slots` of them at a time; the order is that of the requests.

        Each answer equals the one that `generate` gives alone. Prompts and options are checked
        first; a picture is read when a slot is free for it, and one that cannot be read ends the
        batch: the ImageError says which, as `requests[2]: ...`.
        """
        questions = self._questions(requests)
        watches = [Stopwatch() for _ in questions]
        tokens: list[list[int]] = [[] for _ in questions]
        for number, token in self._run(questions, watches, slots, max_new_tokens, sampling):
            tokens[number].append(token)
        return [
            self._generation(question.prompt, ids, watch)
            for question, ids, watch in zip(questions, tokens, watches, strict=True)
        ]

    def masks(
        self, detections: Sequence[Detection], width: int, height: int
    ) -> list[NDArray[np.float32] | None]:
        """Soft masks [height, width] in 0..1 of the detections that hold segmentation codes."""
        width, height = devices.check_count("width", width), devices.check_count("height", height)
        codes = [d.codes for d in detections if d.codes is not None]
        if not codes:
            return [None] * len(detections)
        decoded = iter(self.engine.decode_masks(np.asarray(codes, np.int64)))
        return [
            None if d.codes is None else paste_mask(next(decoded), d.box, width, height)
            for d in detections
        ]

    def _questions(self, requests: Iterable[tuple[Images, str]]) -> list[_Question]:
        if not isinstance(requests, Iterable):
            raise PromptError(f"the requests are {type(requests).__name__}, wanted a list of pairs")
        asked, questions = list(requests), []
        for number, request in enumerate(asked):
            with _telling_which(number, len(asked)):
                if not isinstance(request, list | tuple) or len(request) != 2:
                    found = type(request).__name__
                    raise PromptError(f"a {found} that is no pair, wanted (picture, prompt)")
                questions.append(self._question(*request))
        return questions

    def _question(self, image: Images, prompt: str) -> _Question:
        images = tuple(image) if isinstance(image, list | tuple) else (image,)
        if not images:
            raise PromptError("no picture was given, wanted at least one for each prompt")
        return _Question(images, prompt, self.encoder.encode(prompt, len(images)))

    def _run(
        self,
        questions: Sequence[_Question],
        watches: Sequence[Stopwatch],
        slots: int,
        max_new_tokens: int,
        sampling: Sampling | None,
    ) -> Iterator[tuple[int, int]]:
        max_new_tokens = devices.check_count("max_new_tokens", max_new_tokens)
        slots = devices.check_count("slots", slots)
        policy = _policy(sampling)
        if not questions:
            return iter(())
        capacity = max(self._length(q) for q in questions) + max_new_tokens
        self._check_fits(capacity, max_new_tokens)
        cache = Cache.allocate(self.engine.facts, min(slots, len(questions)), capacity)

        def request(number: int, question: _Question, watch: Stopwatch) -> Request:
            with _telling_which(number, len(questions)):
                pixels = self._pixels(question, watch)
            return Request(pixels, question.ids, max_new_tokens, policy, watch)

        requests = map(request, itertools.count(), questions, watches)
        return generate(self.engine, self.bundle.manifest.tokenizer, requests, cache)

    def _pieces(self, tokens: Iterable[tuple[int, int]]) -> Iterator[str]:
        text = TextStream(self.encoder)
        for _, token in tokens:
            if piece := text.push(token):
                yield piece
        if piece := text.finish():
            yield piece

    def _length(self, question: _Question) -> int:
        return len(question.images) * self.engine.facts.image_tokens + len(question.ids)

    def _check_fits(self, capacity: int, max_new_tokens: int) -> None:
        limit = self.engine.facts.max_length
        if capacity > limit:
            raise PromptError(
                f"prompt and pictures take {capacity - max_new_tokens} tokens and the answer may "
                f"take {max_new_tokens}, the model holds {limit} in all; shorten the prompt, give "
                "fewer pictures or lower max_new_tokens"
            )

    def _pixels(self, question: _Question, watch: Stopwatch) -> NDArray[np.float32]:
        with watch.measure("preprocess"):
            facts = self.bundle.manifest.image
            return np.stack([pixel_values(load_image(i), facts) for i in question.images])

    def _generation(self, prompt: str, ids: Sequence[int], watch: Stopwatch) -> Generation:
        truncated = ids[-1] != self.bundle.manifest.tokenizer.eos_id
        text = self.encoder.decode(ids)
        return Generation(prompt, text, tuple(ids), truncated, watch.seconds)


def _policy(sampling: Sampling | None) -> Sampling:
    if sampling is None:
        return Greedy()
    if isinstance(sampling, type) or not callable(getattr(sampling, "choose", None)):
        raise OptionError(
            f"sampling is {sampling!r}, wanted a policy such as TopSampling(temperature=0.7), "
            "or None for the most likely token"
        )
    return sampling


@contextmanager
def _telling_which(number: int, count: int) -> Iterator[None]:
    """Let an error name the one of several requests that it is about."""
    try:
        yield
    except (ImageError, PromptError) as error:
        if count == 1:
            raise
        raise type(error)(f"requests[{number}]: {error}") from None
