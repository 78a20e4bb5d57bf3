"""One prompt through the engine, tensor by tensor: encoded, followed by a known or greedy answer.

Knows tensors and ids. Knows nothing of what is compared with them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paligemma_edge.runtime.engine.engine import Engine, Tensor
from paligemma_edge.runtime.engine.logits import Row
from paligemma_edge.runtime.timing import Stopwatch


@dataclass(frozen=True, eq=False)
class EncodedPrompt:
    """Images and text as the decoder reads them."""

    image_features: Tensor  # [images, N, hidden]
    ids: tuple[int, ...]

    @property
    def length(self) -> int:
        """Tokens of images and text."""
        images, tokens, _ = self.image_features.shape()
        return int(images * tokens) + len(self.ids)


def encode_prompt(
    engine: Engine,
    pixel_values: NDArray[np.float32],
    ids: Sequence[int],
    watch: Stopwatch | None = None,
) -> EncodedPrompt:
    """Encode and project pixels [images, 3, R, R]; `watch` gets the seconds of both stages."""
    watch = watch or Stopwatch()
    with watch.measure("vision"):
        hidden = engine.encode(pixel_values)
    with watch.measure("projector"):
        features = engine.project(hidden)
    return EncodedPrompt(features, tuple(ids))


def replay(engine: Engine, prompt: EncodedPrompt, tokens: Sequence[int]) -> Iterator[Row]:
    """Prefill a prompt, then feed a known answer: the logits before each of its tokens.

    What the variant itself would have chosen is not fed, so that one difference does not grow into
    others. Each row is valid until the next one is asked for.
    """
    cache = engine.cache(1, prompt.length + len(tokens))
    yield engine.prefill(cache, 0, prompt.image_features, prompt.ids)
    stepper = engine.stepper(cache, 1)
    for token in tokens[:-1]:
        yield stepper.step([token])[0]


def greedy(
    engine: Engine,
    prompt: EncodedPrompt,
    max_new_tokens: int,
    eos_ids: Collection[int],
    *,
    choose: Callable[[Row], int] = lambda row: row.best,
) -> Iterator[tuple[int, Row]]:
    """The greedy answer: each token with the logits that it was chosen from.

    It ends with one of `eos_ids`, or after `max_new_tokens`. `choose` may look at a row before it
    picks the most likely token. Each row is valid until the next one is asked for.
    """
    cache = engine.cache(1, prompt.length + max_new_tokens)
    row = engine.prefill(cache, 0, prompt.image_features, prompt.ids)
    stepper = engine.stepper(cache, 1)
    for place in range(max_new_tokens):
        token = choose(row)
        yield token, row
        if token in eos_ids or place + 1 == max_new_tokens:
            return
        row = stepper.step([token])[0]
