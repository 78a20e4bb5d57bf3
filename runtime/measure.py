"""One question, asked again and again: the seconds of its stages and of its steps.

Measures what a user waits for: a picture is read from its file, a token is chosen from the
logits. The end-of-sequence token ends nothing here, so every run takes the same steps.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from paligemma_edge.runtime.cache import Cache
from paligemma_edge.runtime.contract import ModelFacts
from paligemma_edge.runtime.errors import OptionError
from paligemma_edge.runtime.host import available_memory
from paligemma_edge.runtime.image import load_image, pixel_values
from paligemma_edge.runtime.model import PaliGemma
from paligemma_edge.runtime.sampling import Greedy
from paligemma_edge.runtime.stopwatch import Stopwatch
from paligemma_edge.runtime.timings import StepTimings, Timings, until_first_token

if TYPE_CHECKING:
    import onnxruntime as ort


@dataclass(frozen=True)
class Question:
    """A picture in a file and a prompt, asked again and again."""

    model: PaliGemma
    image: Path
    prompt: str
    steps: int


@dataclass(frozen=True)
class Prompt:
    """A question as the decoder reads it."""

    features: ort.OrtValue  # [1, N, hidden]
    ids: tuple[int, ...]

    @property
    def length(self) -> int:
        """Tokens of picture and text."""
        return int(self.features.shape()[1]) + len(self.ids)


def measure_reading(question: Question, runs: int) -> tuple[Prompt, dict[str, Timings]]:
    """Read the question `runs` times after a warm-up; OptionError where it is too long."""
    _check_length(question)
    read = _read(question, Stopwatch())
    watches = [Stopwatch() for _ in range(runs)]
    for watch in watches:
        _read(question, watch)
    return read, until_first_token(watches)


def _read(question: Question, watch: Stopwatch) -> Prompt:
    """From the picture's file to the first token, as every answer begins."""
    engine, manifest = question.model.engine, question.model.bundle.manifest
    with watch.measure("preprocess"):
        pixels = pixel_values(load_image(question.image), manifest.image)[None]
        ids = question.model.encoder.encode(question.prompt, 1)
    with watch.measure("vision"):
        hidden = engine.encode(pixels)
    with watch.measure("projector"):
        read = Prompt(engine.project(hidden), ids)
    with watch.measure("prefill"):
        cache = Cache.allocate(engine.facts, 1, read.length + question.steps)
        _choose(question, engine.prefill(cache, 0, read.features, ids), 0)
    return read


def measure_stepping(
    question: Question, read: Prompt, runs: int, batches: Sequence[int]
) -> tuple[StepTimings, ...]:
    """Fill the slots of the largest batch once; then all batches step from there.

    One warm-up and `runs` runs a batch. OptionError where the cache does not fit into memory.
    """
    engine, slots = question.model.engine, max(batches)
    _check_memory(engine.facts, slots, read.length + question.steps)
    cache = Cache.allocate(engine.facts, slots, read.length + question.steps)
    first = [
        _choose(question, engine.prefill(cache, slot, read.features, read.ids), 0)
        for slot in range(slots)
    ]

    def seconds(batch: int) -> float:
        cache.lengths[:] = read.length
        return _step_seconds(question, cache, first[:batch])

    return tuple(
        StepTimings(batch, Timings(tuple(seconds(batch) for _ in range(runs + 1))[1:]))
        for batch in batches
    )


def _step_seconds(question: Question, cache: Cache, tokens: list[int]) -> float:
    """Seconds of one step of so many slots, the choice of their next tokens included."""
    stepper = question.model.engine.stepper(cache, len(tokens))
    start = time.perf_counter()
    for position in range(1, question.steps + 1):
        tokens = [_choose(question, row, position) for row in stepper.step(tokens)]
    return (time.perf_counter() - start) / question.steps


def _choose(question: Question, logits: NDArray[np.float32], position: int) -> int:
    spoken = question.model.bundle.manifest.tokenizer.image_id
    return Greedy().choose(logits[:spoken], position)


def _check_length(question: Question) -> None:
    facts = question.model.engine.facts
    prompt = facts.image_tokens + len(question.model.encoder.encode(question.prompt, 1))
    if prompt + question.steps > facts.max_length:
        raise OptionError(
            f"prompt and picture take {prompt} tokens and steps is {question.steps}, the model "
            f"holds {facts.max_length} in all; lower steps or shorten the prompt"
        )


def _check_memory(facts: ModelFacts, slots: int, capacity: int) -> None:
    needed, free = slots * facts.cache_bytes(capacity), available_memory()
    if free is not None and needed > free:
        raise OptionError(
            f"batch {slots} needs {needed / 1e9:.1f} GB of keys and values, {free / 1e9:.1f} GB "
            "are free; ask for a smaller batch or fewer steps"
        )
