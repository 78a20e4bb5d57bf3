"""One question, asked again and again: the seconds of its stages and of its steps.

Measures what a user waits for: an image is read from its file, a token is chosen from the
logits. The end-of-sequence token ends nothing here, so every run takes the same steps.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from paligemma_edge.runtime.diagnostics.timings import StepTimings, Timings, until_first_token
from paligemma_edge.runtime.engine.engine import Engine
from paligemma_edge.runtime.engine.kv_cache import KVCache
from paligemma_edge.runtime.errors import OptionError
from paligemma_edge.runtime.generation.pipeline import Pipeline
from paligemma_edge.runtime.images.load import load_image
from paligemma_edge.runtime.images.preprocess import pixel_values
from paligemma_edge.runtime.system.linux import available_memory
from paligemma_edge.runtime.timing import Stopwatch

if TYPE_CHECKING:
    import onnxruntime as ort


@dataclass(frozen=True)
class RepeatedPrompt:
    """An image in a file and a prompt, asked again and again."""

    pipeline: Pipeline
    image: Path
    prompt: str
    steps: int


@dataclass(frozen=True)
class EncodedPrompt:
    """A question as the decoder reads it."""

    features: ort.OrtValue  # [1, N, hidden]
    ids: tuple[int, ...]

    @property
    def length(self) -> int:
        """Tokens of image and text."""
        return int(self.features.shape()[1]) + len(self.ids)


def measure_reading(
    question: RepeatedPrompt, runs: int
) -> tuple[EncodedPrompt, dict[str, Timings]]:
    """Read the question `runs` times after a warm-up; OptionError where it is too long."""
    _check_length(question)
    read = _read(question, Stopwatch())
    watches = [Stopwatch() for _ in range(runs)]
    for watch in watches:
        _read(question, watch)
    return read, until_first_token(watches)


def _read(question: RepeatedPrompt, watch: Stopwatch) -> EncodedPrompt:
    """From the image's file to the first token, as every answer begins."""
    engine, manifest = question.pipeline.engine, question.pipeline.manifest
    with watch.measure("preprocess"):
        pixels = pixel_values(load_image(question.image), manifest.image)[None]
        ids = question.pipeline.encoder.encode(question.prompt, 1)
    with watch.measure("vision"):
        hidden = engine.encode(pixels)
    with watch.measure("projector"):
        read = EncodedPrompt(engine.project(hidden), ids)
    lent = question.pipeline.cache_pool.acquire(1, read.length + question.steps)
    with watch.measure("prefill"), lent as cache:
        engine.prefill(cache, 0, read.features, ids).best  # noqa: B018 - a token is chosen
    return read


def measure_stepping(
    question: RepeatedPrompt, read: EncodedPrompt, runs: int, batches: Sequence[int]
) -> tuple[StepTimings, ...]:
    """Fill the slots of the largest batch once; then all batches step from there.

    One warm-up and `runs` runs a batch. OptionError where the cache does not fit into memory, or
    the model was opened for fewer slots.
    """
    engine = question.pipeline.engine
    slots = question.pipeline.cache_pool.slots(max(batches), max(batches))
    _check_memory(engine, slots, read.length + question.steps)
    with question.pipeline.cache_pool.acquire(slots, read.length + question.steps) as cache:
        first = [engine.prefill(cache, slot, read.features, read.ids).best for slot in range(slots)]

        def seconds(batch: int) -> float:
            cache.lengths[:] = read.length
            return _step_seconds(question, cache, first[:batch])

        return tuple(
            StepTimings(batch, Timings(tuple(seconds(batch) for _ in range(runs + 1))[1:]))
            for batch in batches
        )


def _step_seconds(question: RepeatedPrompt, cache: KVCache, tokens: list[int]) -> float:
    """Seconds of one step of so many slots, the choice of their next tokens included."""
    stepper = question.pipeline.engine.stepper(cache, len(tokens))
    start = time.perf_counter()
    for _ in range(question.steps):
        logits = stepper.step(tokens)
        tokens = [logits[slot].best for slot in range(len(tokens))]
    return (time.perf_counter() - start) / question.steps


def _check_length(question: RepeatedPrompt) -> None:
    pipeline = question.pipeline
    limit, ids = pipeline.cache_pool.max_length, pipeline.encoder.encode(question.prompt, 1)
    prompt = pipeline.engine.config.image_tokens + len(ids)
    if prompt + question.steps > limit:
        raise OptionError(
            f"prompt and image take {prompt} tokens and steps is {question.steps}, the model "
            f"holds {limit} in all; lower steps or shorten the prompt"
        )


def _check_memory(engine: Engine, slots: int, capacity: int) -> None:
    needed = slots * engine.config.cache_bytes(capacity, engine.dtype)
    free = available_memory() if engine.memory.device == "cpu" else None
    if free is not None and needed > free:
        raise OptionError(
            f"batch {slots} needs {needed / 1e9:.1f} GB of keys and values, {free / 1e9:.1f} GB "
            "are free; ask for a smaller batch or fewer steps"
        )
