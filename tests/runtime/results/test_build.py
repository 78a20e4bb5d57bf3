"""What a generation becomes: each object with its own mask."""

from __future__ import annotations

import numpy as np

from paligemma_edge.runtime.loading.loaded_model import LoadedModel
from paligemma_edge.runtime.results.build import decoded_masks
from paligemma_edge.runtime.text.parse_answer import Box, ParsedObject


def test_masks_belong_to_their_objects(shapes_loaded: LoadedModel) -> None:
    decode_masks, rng = shapes_loaded.engine.decode_masks, np.random.default_rng(0)
    box = Box(0.25, 0.5, 0.75, 1.0)
    codes = [tuple(map(int, rng.integers(0, 128, 16))) for _ in range(2)]
    objects = [
        ParsedObject("a", box, codes[0]),
        ParsedObject("b", box, None),
        ParsedObject("c", box, codes[1]),
    ]
    first, none, last = decoded_masks(objects, decode_masks)
    assert none is None
    assert first is not None and last is not None
    assert first.shape == (64, 64)
    assert not np.array_equal(first, last)
    (alone,) = decoded_masks(objects[2:], decode_masks)
    assert alone is not None and np.array_equal(alone, last)
    assert decoded_masks([], decode_masks) == []
