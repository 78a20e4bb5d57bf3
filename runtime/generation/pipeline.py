"""From a prompt to an answer: requests are checked, answered in slots and put together as text.

Knows prompts, limits and slots. Knows nothing of files, and of boxes only which tokens are theirs.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass

from paligemma_edge.runtime.contract import LOC_COUNT
from paligemma_edge.runtime.device.run_stop import RunStop
from paligemma_edge.runtime.engine.cache_pool import KVCachePool
from paligemma_edge.runtime.engine.engine import Engine, Tensor
from paligemma_edge.runtime.engine.kv_cache import KVCache
from paligemma_edge.runtime.engine.logits import Row
from paligemma_edge.runtime.engine.replay import EncodedPrompt, encode_prompt
from paligemma_edge.runtime.errors import PromptError
from paligemma_edge.runtime.generation.choice_scoring import score_choices
from paligemma_edge.runtime.generation.feature_cache import ImageFeatureCache
from paligemma_edge.runtime.generation.loop import (
    ActiveSequence,
    GeneratedToken,
    SlotLoop,
    generate,
)
from paligemma_edge.runtime.generation.request import (
    DEFAULT_MAX_NEW_TOKENS,
    GenerationOptions,
    Request,
)
from paligemma_edge.runtime.generation.sampling import Greedy
from paligemma_edge.runtime.grammar.choices import Choices
from paligemma_edge.runtime.images.batch import ImageBatch, ImageReader
from paligemma_edge.runtime.images.load import ImageInput
from paligemma_edge.runtime.manifest import Manifest
from paligemma_edge.runtime.results.generation import (
    FinishReason,
    Generation,
    decode_with_offsets,
)
from paligemma_edge.runtime.text.tokenizer import PromptEncoder, TextStream
from paligemma_edge.runtime.timing import Stopwatch


@dataclass(frozen=True, eq=False)
class Pipeline:
    """The open graphs of a variant with the tokenizer that belongs to them."""

    engine: Engine
    encoder: PromptEncoder
    manifest: Manifest
    cache_pool: KVCachePool
    images: ImageReader

    def request(self, prompt: str, image_count: int, options: GenerationOptions) -> Request:
        """Check a prompt about so many images; PromptError where it cannot be answered."""
        if image_count < 1:
            raise PromptError("no image was given, wanted at least one for each prompt")
        ids = self.encoder.encode(prompt, image_count)
        length = image_count * self.engine.config.image_tokens + len(ids)
        max_new_tokens = self._room(length, options.max_new_tokens)
        state = None if options.grammar is None else options.grammar.start(self.encoder)
        return Request(
            prompt,
            ids,
            length,
            max_new_tokens,
            options.sampling or Greedy(),
            state,
            top_log_probs=options.top_log_probs,
        )

    def request_about(
        self, images: Sequence[ImageInput], prompt: str, options: GenerationOptions
    ) -> Request:
        """The same about some images, which are read when a slot is free."""
        request = self.request(prompt, len(images), options)
        return request.about(lambda watch: self.read_images(images, watch))

    def answer(
        self,
        requests: Iterable[Request],
        *,
        slots: int,
        capacity: int,
        features: ImageFeatureCache | None = None,
    ) -> Generator[tuple[int, Generation], None, None]:
        """Answer in so many slots; yield (place in `requests`, generation) as answers end.

        `requests` is read only as slots become free. `capacity` is that of the longest one.
        Images whose pixels were seen lately, or are in `features`, are not encoded again.
        """
        with closing(self._generate(requests, slots, capacity, features)) as tokens:
            for generated in tokens:
                if generated.finish_reason is not None:
                    yield generated.sequence.number, self.generation(generated.sequence)

    def answer_one(self, request: Request, features: ImageFeatureCache | None = None) -> Generation:
        """Answer one request."""
        ((_, generation),) = self.answer(
            [request], slots=1, capacity=request.capacity, features=features
        )
        return generation

    def stream(
        self, request: Request, features: ImageFeatureCache | None = None
    ) -> Generator[str, None, FinishReason | None]:
        """The text of one answer, piece by piece, and at last why it ended.

        A character is never cut in two.
        """
        text, reason = TextStream(self.encoder), None
        for generated in self._generate([request], 1, request.capacity, features):
            reason = generated.finish_reason
            if piece := text.push(generated.token):
                yield piece
        if piece := text.finish():
            yield piece
        return reason

    def score(self, request: Request, image_features: Tensor, choices: Choices) -> dict[str, float]:
        """Log-probability of each choice, its end included; a prefix they share is read once."""
        with self.cache_pool.acquire(1, request.capacity) as cache:
            return self.score_in_slot(cache, 0, request, image_features, choices=choices)

    def score_in_slot(
        self,
        cache: KVCache,
        slot: int,
        request: Request,
        image_features: Tensor,
        *,
        choices: Choices,
        stop: RunStop | None = None,
    ) -> dict[str, float]:
        """The same in a slot that is free; `stop` lets another thread end the prefill."""
        first = self.engine.prefill(cache, slot, image_features, request.ids, stop)
        stepper = self.engine.stepper(cache, 1, first=slot)

        def read(depth: int, token: int) -> Row:
            cache.lengths[slot] = request.length + depth  # what comes after is written over
            return stepper.step([token])[slot]

        return score_choices(choices, self.encoder, first, read)

    def read_images(
        self, images: Sequence[ImageInput], watch: Stopwatch | None = None
    ) -> ImageBatch:
        """Read and preprocess the images of one prompt; ImageError where one cannot be read."""
        return self.images.read(images, watch or Stopwatch())

    def encode(
        self, images: ImageBatch, prompt: str, watch: Stopwatch | None = None
    ) -> EncodedPrompt:
        """Encode images and the prompt about them, as an answer begins.

        `watch` gets the seconds of the stages. PromptError for a prompt that cannot be used.
        """
        watch = watch or Stopwatch()
        with watch.measure("preprocess"):
            ids = self.encoder.encode(prompt, images.count)
        return encode_prompt(self.engine, images.pixel_values, ids, watch)

    def loop_in(self, cache: KVCache, slots: int, features: ImageFeatureCache) -> SlotLoop:
        """The loop over slots of a cache that is at hand."""
        ids = self.manifest.tokenizer
        locations = range(ids.first_loc_id, ids.first_loc_id + LOC_COUNT)
        return SlotLoop(self.engine, features, cache, slots, ids.eos_ids, locations)

    def _generate(
        self,
        requests: Iterable[Request],
        slots: int,
        capacity: int,
        features: ImageFeatureCache | None,
    ) -> Generator[GeneratedToken, None, None]:
        features = features or ImageFeatureCache(self.engine)
        with self.cache_pool.acquire(slots, capacity) as cache:
            yield from generate(self.loop_in(cache, slots, features), requests)

    def generation(self, sequence: ActiveSequence) -> Generation:
        """The answer so far; one that has not ended is as if the token limit cut it."""
        text, char_offsets = decode_with_offsets(self.encoder, sequence.tokens)
        return Generation(
            prompt=sequence.request.prompt,
            text=text,
            token_ids=tuple(sequence.tokens),
            log_probs=tuple(sequence.log_probs),
            char_offsets=char_offsets,
            box_log_probs=sequence.box_log_probs,
            finish_reason=sequence.finish_reason or "length",
            seconds=sequence.watch.seconds,
            top_log_probs=tuple(sequence.top_log_probs),
        )

    def _room(self, length: int, max_new_tokens: int | None) -> int:
        """Tokens of an answer; PromptError where so many, or any at all, are not left."""
        limit = self.cache_pool.max_length
        room = max_new_tokens or min(DEFAULT_MAX_NEW_TOKENS, limit - length)
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
