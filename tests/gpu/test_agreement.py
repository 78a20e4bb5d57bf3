"""A GPU gives the answers of the lossless variant on a CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from paligemma_edge import PaliGemma
from tests.gpu.conftest import Record
from tests.gpu.on_gpu import (
    BUNDLES,
    SHAPES,
    VARIANTS,
    Requests,
    Where,
    agree,
    relative_error,
    share,
)

pytestmark = pytest.mark.gpu
HALVES = ("cuda-fp16", "cuda-bf16")
# Of the largest logit. Weights of 8 and 4 bits are rounded, and their errors recorded alone.
HALF_ERROR = 2e-2


@pytest.mark.parametrize("variant", VARIANTS)
def test_answers_are_those_of_the_lossless_variant(
    variant: str, where: Where, lossless: PaliGemma, requests: Requests, record: Record
) -> None:
    expected = lossless.generate_batch(requests, max_batch_size=8)
    actual = where.model(SHAPES, variant).generate_batch(requests, max_batch_size=8)
    pairs = list(zip(actual, expected, strict=True))
    same = share([one.token_ids == other.token_ids for one, other in pairs])
    near = share([agree(one, other) for one, other in pairs])
    record(f"{variant}, the same answers of {len(pairs)}", f"{same:.4f}, but for ties {near:.4f}")
    if variant in HALVES:
        assert near >= 0.99
    if variant == "cuda-fp16":  # in bfloat16 transformers' own answers differ more often
        assert same >= 0.95


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", BUNDLES)
def test_first_logits_are_those_of_the_lossless_variant(
    name: str, variant: str, where: Where, requests: Requests, record: Record
) -> None:
    actual, expected = where.model(name, variant), where.model(name, "cpu-fp32")
    chosen = requests if name == SHAPES else requests[:6]
    errors = [
        relative_error(first_logits(actual, *request), first_logits(expected, *request))
        for request in chosen
    ]
    record(f"{name} {variant}, largest error of first logits", f"{max(errors):.2e}")
    if variant in HALVES:
        assert max(errors) < HALF_ERROR


def first_logits(model: PaliGemma, image: Path, prompt: str) -> NDArray[np.float32]:
    engine, ids = model._loaded.engine, model._loaded.encoder.encode(prompt, 1)
    features = model.encode(image)._features
    cache = engine.cache(1, engine.config.image_tokens + len(ids))
    row = engine.prefill(cache, 0, features, ids)  # kept: on a CPU `whole` is its own memory
    return row.whole.copy()
