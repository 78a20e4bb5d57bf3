"""What is kept of images that were encoded: the latest ones, within a bound."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pytest

from paligemma_edge.runtime.contract import ComputeDtype
from paligemma_edge.runtime.engine.engine import Engine
from paligemma_edge.runtime.generation import feature_cache
from paligemma_edge.runtime.generation.feature_cache import ImageFeatureCache
from paligemma_edge.runtime.images.batch import ImageBatch
from paligemma_edge.runtime.timing import Stopwatch

SHAPE = (1, 4, 8)  # of features: 128 bytes


@dataclass
class Features:
    of: float

    def shape(self) -> tuple[int, ...]:
        return SHAPE


@dataclass
class Counting:
    """An engine that only notes what it was asked to encode."""

    encoded: list[float] = field(default_factory=list)
    dtype: ComputeDtype = "float32"

    def encode(self, pixels: Any, stop: None) -> float:  # noqa: ANN401
        self.encoded.append(float(pixels.flat[0]))
        return self.encoded[-1]

    def project(self, hidden: float, stop: None) -> Features:
        return Features(hidden)


def image(value: float) -> ImageBatch:
    return ImageBatch(np.full((1, 3, 2, 2), value, np.float32), 2, 2)


def encoded(values: list[float]) -> tuple[list[float], ImageFeatureCache]:
    engine = Counting()
    encoder = ImageFeatureCache(cast(Engine, engine))
    for value in values:
        found: Any = encoder.features(image(value), Stopwatch())
        assert found.of == value
    return engine.encoded, encoder


def test_an_image_seen_lately_is_not_encoded_again() -> None:
    assert encoded([1, 2, 1, 2, 3, 1])[0] == [1, 2, 3]


@pytest.mark.parametrize(("most", "count"), [(3 * 128, 3), (1, 1)])
def test_no_more_is_kept_than_fits_but_always_the_latest(
    monkeypatch: pytest.MonkeyPatch, most: int, count: int
) -> None:
    monkeypatch.setattr(feature_cache, "_KEPT_BYTES", most)
    runs, encoder = encoded([1, 2, 3, 4, 4])
    assert runs == [1, 2, 3, 4]
    kept: Any = list(encoder.kept.values())
    assert [features.of for features in kept] == [1, 2, 3, 4][-count:]


def test_several_images_are_another_thing_than_one_of_them() -> None:
    both = ImageBatch(np.ones((2, 3, 2, 2), np.float32), 2, 2)
    engine = Counting()
    encoder = ImageFeatureCache(cast(Engine, engine))
    for seen in (both, image(1), both):
        encoder.features(seen, Stopwatch())
    assert len(engine.encoded) == 2
