"""From checked questions to generations: what lies between the facade and the loop.

Knows prompts, limits and slots. Knows nothing of files, and nothing of boxes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from paligemma_edge.runtime.engine.cache_pool import KVCachePool
from paligemma_edge.runtime.engine.engine import Engine
from paligemma_edge.runtime.engine.logits import Row
from paligemma_edge.runtime.errors import OptionError, PromptError
from paligemma_edge.runtime.generation.choice_scoring import score_choices
from paligemma_edge.runtime.generation.loop import GeneratedToken, Request, generate
from paligemma_edge.runtime.generation.sampling import Greedy, Sampling
from paligemma_edge.runtime.grammar.base import Grammar, State
from paligemma_edge.runtime.grammar.choices import Choices
from paligemma_edge.runtime.manifest import Manifest
from paligemma_edge.runtime.results.generation import Generation, decode_with_offsets
from paligemma_edge.runtime.text.tokenizer import PromptEncoder, TextStream
from paligemma_edge.runtime.timing import Stopwatch
from paligemma_edge.runtime.validation import check_count

if TYPE_CHECKING:
    import onnxruntime as ort

DEFAULT_MAX_NEW_TOKENS = 256


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """How to answer. OptionError where a value cannot be used.

    `max_new_tokens` None is DEFAULT_MAX_NEW_TOKENS, or as many as the model still holds.
    """

    max_new_tokens: int | None = None
    sampling: Sampling | None = None  # None: the most likely token
    grammar: Grammar | None = None  # None: anything may be said

    def __post_init__(self) -> None:
        if self.max_new_tokens is not None:
            check_count("max_new_tokens", self.max_new_tokens)
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
class PreparedPrompt:
    """A prompt that was checked, and how to answer it; good for any image."""

    prompt: str
    ids: tuple[int, ...]
    length: int  # of images and prompt, in tokens
    max_new_tokens: int
    sampling: Sampling
    state: State | None  # the start of its grammar

    @property
    def capacity(self) -> int:
        """Tokens that a slot must hold for it."""
        return self.length + self.max_new_tokens


@dataclass(frozen=True, eq=False)
class EncodedRequest:
    """A question about images that were encoded: features [images, N, hidden]."""

    question: PreparedPrompt
    image_features: ort.OrtValue
    watch: Stopwatch


@dataclass(frozen=True, eq=False)
class Pipeline:
    """The open graphs of a variant with the tokenizer that belongs to them."""

    engine: Engine
    encoder: PromptEncoder
    manifest: Manifest
    cache_pool: KVCachePool

    def question(self, prompt: str, images: int, options: GenerationOptions) -> PreparedPrompt:
        """Check a prompt about so many images; PromptError where it cannot be asked."""
        if images < 1:
            raise PromptError("no image was given, wanted at least one for each prompt")
        ids = self.encoder.encode(prompt, images)
        length = images * self.engine.config.image_tokens + len(ids)
        max_new_tokens = self._room(length, options.max_new_tokens)
        state = None if options.grammar is None else options.grammar.start(self.encoder)
        sampling = options.sampling or Greedy()
        return PreparedPrompt(prompt, ids, length, max_new_tokens, sampling, state)

    def answer(
        self, asked: Iterable[EncodedRequest], *, slots: int, capacity: int
    ) -> Iterator[tuple[int, Generation]]:
        """Answer in so many slots; yield (place in `asked`, generation) as answers are complete.

        `asked` is read only as slots become free. `capacity` is that of the longest question.
        """
        running: dict[int, tuple[EncodedRequest, list[GeneratedToken]]] = {}

        def requests() -> Iterator[Request]:
            for number, one in enumerate(asked):
                running[number] = (one, [])
                yield _request(one)

        for spoken in self._spoken(requests(), slots, capacity):
            one, said = running[spoken.number]
            said.append(spoken)
            if self._ends(spoken, len(said), one.question):
                del running[spoken.number]
                yield spoken.number, self._generation(one, said)

    def stream(self, asked: Iterable[EncodedRequest], capacity: int) -> Iterator[str]:
        """The text of one answer, piece by piece; a character is never cut in two."""
        text = TextStream(self.encoder)
        for spoken in self._spoken(map(_request, asked), 1, capacity):
            if piece := text.push(spoken.token):
                yield piece
        if piece := text.finish():
            yield piece

    def score(
        self, question: PreparedPrompt, image_features: ort.OrtValue, choices: Choices
    ) -> dict[str, float]:
        """Log-probability of each choice, its end included; a prefix they share is read once."""
        with self.cache_pool.acquire(1, question.capacity) as cache:
            first = self.engine.prefill(cache, 0, image_features, question.ids)
            stepper = self.engine.stepper(cache, 1)

            def read(depth: int, token: int) -> Row:
                cache.lengths[0] = question.length + depth  # what lies behind is written over
                return stepper.step([token])[0]

            return score_choices(choices, self.encoder, first, read)

    def _spoken(
        self, requests: Iterable[Request], slots: int, capacity: int
    ) -> Iterator[GeneratedToken]:
        with self.cache_pool.acquire(slots, capacity) as cache:
            yield from generate(self.engine, self.manifest.tokenizer, requests, cache, slots)

    def _ends(self, spoken: GeneratedToken, count: int, question: PreparedPrompt) -> bool:
        ended = spoken.token == self.manifest.tokenizer.eos_id
        return ended or count == question.max_new_tokens

    def _generation(self, asked: EncodedRequest, said: list[GeneratedToken]) -> Generation:
        ids = tuple(spoken.token for spoken in said)
        text, ends = decode_with_offsets(self.encoder, ids)
        return Generation(
            prompt=asked.question.prompt,
            text=text,
            token_ids=ids,
            log_probs=tuple(spoken.log_prob for spoken in said),
            ends=ends,
            truncated=ids[-1] != self.manifest.tokenizer.eos_id,
            seconds=asked.watch.seconds,
        )

    def _room(self, length: int, wanted: int | None) -> int:
        """Tokens of an answer; PromptError where so many, or any at all, are not left."""
        limit = self.cache_pool.max_length
        room = min(DEFAULT_MAX_NEW_TOKENS, limit - length) if wanted is None else wanted
        if room < 1 or length + room > limit:
            held, more = f"the model holds {limit}", ""
            if self.cache_pool.plan is not None:
                held, more = f"it was opened with max_length {limit}", "open it with more, "
            raise PromptError(
                f"prompt and images take {length} tokens and the answer may take "
                f"{max(room, 1)}, {held} in all; {more}shorten the prompt, give fewer images "
                "or lower max_new_tokens"
            )
        return room


def _request(asked: EncodedRequest) -> Request:
    question = asked.question
    return Request(
        asked.image_features,
        question.ids,
        question.max_new_tokens,
        question.sampling,
        question.state,
        asked.watch,
    )


def _has(policy: object, method: str) -> bool:
    return not isinstance(policy, type) and callable(getattr(policy, method, None))
