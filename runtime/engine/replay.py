"""A known answer through the decoder: the logits before each of its tokens.

Knows tensors and ids. Knows nothing of what is compared with them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from paligemma_edge.runtime.engine.engine import Engine

if TYPE_CHECKING:
    import onnxruntime as ort


def replay(
    engine: Engine, features: ort.OrtValue, ids: Sequence[int], tokens: Sequence[int]
) -> Iterator[NDArray[np.float32]]:
    """Prefill a prompt, then feed a known answer: the logits [vocab] before each of its tokens.

    `features` is [images, N, hidden]. What the variant itself would have said is not fed, so
    one difference does not grow into others. Each row is valid until the next one is asked for.
    """
    images, image_tokens, _ = features.shape()
    capacity = images * image_tokens + len(ids) + len(tokens)
    cache = engine.cache(1, capacity)
    yield engine.prefill(cache, 0, features, ids).whole
    stepper = engine.stepper(cache, 1)
    for token in tokens[:-1]:
        yield stepper.step([token])[0].whole
