"""One prompt, answered again and again: the seconds of its stages and of its steps.

Measures what a user waits for: an image is read from its file, a token is chosen from the
logits. The end-of-sequence token ends nothing here, so every run takes the same steps.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from paligemma_edge.runtime.diagnostics.timings import StepTimings, Timings, until_first_token
from paligemma_edge.runtime.engine.engine import Engine
from paligemma_edge.runtime.engine.kv_cache import KVCache
from paligemma_edge.runtime.engine.replay import EncodedPrompt
from paligemma_edge.runtime.errors import OptionError
from paligemma_edge.runtime.generation.pipeline import Pipeline
from paligemma_edge.runtime.system.linux import available_memory
from paligemma_edge.runtime.timing import Stopwatch


@dataclass(frozen=True)
class RepeatedPrompt:
    """An image in a file and a prompt, answered again and again."""

    pipeline: Pipeline
    image: Path
    prompt: str
    steps: int


def measure_reading(
    repeated: RepeatedPrompt, runs: int
) -> tuple[EncodedPrompt, dict[str, Timings]]:
    """Read the prompt `runs` times after a warm-up; OptionError where it is too long."""
    _check_length(repeated)
    encoded = _read(repeated, Stopwatch())
    watches = [Stopwatch() for _ in range(runs)]
    for watch in watches:
        _read(repeated, watch)
    return encoded, until_first_token(watches)


def _read(repeated: RepeatedPrompt, watch: Stopwatch) -> EncodedPrompt:
    """From the image's file to the first token, as every answer begins."""
    pipeline = repeated.pipeline
    image = pipeline.read_images([repeated.image], watch)
    encoded = pipeline.encode(image, repeated.prompt, watch)
    slots = pipeline.cache_pool.acquire(1, encoded.length + repeated.steps)
    with watch.measure("prefill"), slots as cache:
        row = pipeline.engine.prefill(cache, 0, encoded.image_features, encoded.ids)
        row.best  # noqa: B018 - a token is chosen
    return encoded


def measure_stepping(
    repeated: RepeatedPrompt, encoded: EncodedPrompt, runs: int, batch_sizes: Sequence[int]
) -> tuple[StepTimings, ...]:
    """Fill the slots of the largest batch once; then all batches step from there.

    One warm-up and `runs` runs a batch size. OptionError where the cache does not fit into memory,
    or the model was opened for fewer slots.
    """
    engine, pool, most = repeated.pipeline.engine, repeated.pipeline.cache_pool, max(batch_sizes)
    slots, capacity = pool.slots(most, most), encoded.length + repeated.steps
    _check_memory(engine, slots, capacity)
    with pool.acquire(slots, capacity) as cache:
        prompt = (encoded.image_features, encoded.ids)
        first = [engine.prefill(cache, slot, *prompt).best for slot in range(slots)]

        def seconds(size: int) -> float:
            cache.lengths[:] = encoded.length
            return _step_seconds(repeated, cache, first[:size])

        return tuple(
            StepTimings(size, Timings(tuple(seconds(size) for _ in range(runs + 1))[1:]))
            for size in batch_sizes
        )


def _step_seconds(repeated: RepeatedPrompt, cache: KVCache, tokens: list[int]) -> float:
    """Seconds of one step of so many slots, the choice of their next tokens included."""
    stepper = repeated.pipeline.engine.stepper(cache, len(tokens))
    start = time.perf_counter()
    for _ in range(repeated.steps):
        logits = stepper.step(tokens)
        tokens = [logits[slot].best for slot in range(len(tokens))]
    return (time.perf_counter() - start) / repeated.steps


def _check_length(repeated: RepeatedPrompt) -> None:
    pipeline = repeated.pipeline
    limit, ids = pipeline.cache_pool.max_length, pipeline.encoder.encode(repeated.prompt, 1)
    length = pipeline.engine.config.image_tokens + len(ids)
    if length + repeated.steps > limit:
        raise OptionError(
            f"prompt and image take {length} tokens and steps is {repeated.steps}, the model "
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
