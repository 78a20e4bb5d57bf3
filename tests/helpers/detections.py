"""Results that no model gave, for the tests of what becomes of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from paligemma_edge.runtime.results.detection import Detection
from paligemma_edge.runtime.results.result import ObjectResult
from paligemma_edge.runtime.text.parse_answer import Box

WIDTH, HEIGHT = 60, 40
BOX = Box(0.25, 0.1, 0.75, 0.6)  # rows 10..30, columns 6..36
CLASSES = ("cat", "dog")
NO_PIXELS = Box(0.5, 0.9, 0.2, 0.1)


def disc(radius: float = 0.8) -> NDArray[np.float32]:
    """What a mask decoder gives for a disc: float32 [64, 64] in -1..1."""
    line = np.linspace(-1, 1, 64)
    distance = np.hypot(line[:, None], line)
    return np.tanh(8 * (radius - distance)).astype(np.float32)


def detection(
    label: str = "cat",
    box: Box = BOX,
    decoded: NDArray[np.float32] | None = None,
    log_prob: float = -0.5,
) -> Detection:
    return Detection(
        label=label,
        class_id=CLASSES.index(label) if label in CLASSES else -1,
        log_prob=log_prob,
        xyxy_normalized=box.xyxy,
        width=WIDTH,
        height=HEIGHT,
        decoded_mask=decoded,
    )


def result(objects: Sequence[Detection] = (), **fields: Any) -> ObjectResult:  # noqa: ANN401
    whole: dict[str, Any] = {
        "prompt": "detect cat ; dog",
        "text": "<loc0256> cat",
        "classes": CLASSES,
        "log_prob": -0.25,
        "finish_reason": "stop",
        "width": WIDTH,
        "height": HEIGHT,
        **fields,
    }
    return ObjectResult(objects=tuple(objects), **whole)


@st.composite
def results(draw: st.DrawFn) -> ObjectResult:
    """Any objects: with and without masks, labels and pixels."""
    locations = st.tuples(*[st.integers(0, 1023)] * 4)
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    objects = [
        detection(
            draw(st.sampled_from(["cat", "dog", "", "日本"])),
            Box.from_locations(*draw(locations)),
            random.uniform(-1.5, 1.5, (64, 64)).astype(np.float32) if draw(st.booleans()) else None,
            draw(st.floats(-50, 0)),
        )
        for _ in range(draw(st.integers(0, 4)))
    ]
    return result(objects)
