"""Steps that are recorded and replayed give the answers of steps that are not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from paligemma_edge import PaliGemma
from paligemma_edge.runtime.engine.kv_cache import KVCache
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
SLOTS, STEPS, LEAVES, JOINS = 4, 24, 6, 9
# Of the largest logit: attention may sum in another order over a cache as long as it can be.
ORDER = {"float16": 5e-3, "bfloat16": 2e-2}


@pytest.mark.parametrize("variant", VARIANTS)
def test_answers_are_the_same_in_any_number_of_slots(
    variant: str, where: Where, requests: Requests, record: Record
) -> None:
    plain = where.model(SHAPES, variant)
    recorded = where.open(SHAPES, variant, cuda_graph=True, max_batch_size=SLOTS)
    chosen = requests[::2]
    alone = plain.generate_batch(chosen, max_batch_size=1)
    for slots in range(1, SLOTS + 1):
        ways = {"plain": plain, "recorded": recorded}
        for way, model in ways.items():
            actual = model.generate_batch(chosen, max_batch_size=slots)
            pairs = list(zip(actual, alone, strict=True))
            same = share([one.token_ids == other.token_ids for one, other in pairs])
            near = share([agree(one, other) for one, other in pairs])
            record(f"{variant} {way} in {slots} slots as alone", f"{same:.4f}, ties {near:.4f}")
            assert near == 1, f"{way} in {slots}"


@pytest.fixture(
    scope="module",
    params=[(n, v) for n in BUNDLES for v in ("cuda-fp16", "cuda-bf16")],
    ids="-".join,
)
def ways(request: pytest.FixtureRequest, where: Where) -> Iterator[tuple[PaliGemma, PaliGemma]]:
    name, variant = request.param
    yield (
        where.model(name, variant),
        where.open(name, variant, cuda_graph=True, max_batch_size=SLOTS),
    )


@pytest.mark.parametrize("slots", range(1, SLOTS + 1))
def test_step_by_step_while_slots_leave_and_join(
    slots: int,
    ways: tuple[PaliGemma, PaliGemma],
    requests: Requests,
    record: Record,
    request: pytest.FixtureRequest,
) -> None:
    """Both are fed the same tokens, so that what differs once is not hidden by what it led to."""
    plain, recorded = ways
    errors, order = [0.0], ORDER[plain._loaded.engine.dtype]
    with (
        plain._loaded.pipeline.cache_pool.acquire(slots, 512) as cache,
        recorded._loaded.pipeline.cache_pool.acquire(slots, 512) as planned,
    ):
        sides = ((plain, cache), (recorded, planned))
        tokens = [fill(sides, slot, requests[slot]) for slot in range(slots)]
        for step in range(STEPS):
            if step == LEAVES:
                for side in (cache, planned):
                    side.lengths[0] = 0  # what a free slot computes is not used
            if step == JOINS:
                tokens[0] = fill(sides, 0, requests[slots])
            rows = [m._loaded.engine.stepper(c, slots).step(tokens) for m, c in sides]
            for slot in range(slots):
                if cache.lengths[slot]:
                    one, other = (logits[slot] for logits in rows)
                    errors.append(relative_error(other.whole, one.whole))
                    gap = other.log_prob(other.best) - other.log_prob(one.best)
                    assert gap <= 2 * order * float(np.abs(one.whole).max())
                    tokens[slot] = one.best
        assert np.array_equal(cache.lengths[:slots], planned.lengths[:slots])
    record(f"largest error, {request.node.callspec.id}", f"{max(errors):.2e}")
    assert max(errors) < order


def fill(sides: tuple[tuple[PaliGemma, KVCache], ...], slot: int, request: tuple[Path, str]) -> int:
    """Read a prompt into a slot of each side; the token that follows it."""
    image, prompt = request
    best = []
    for model, cache in sides:
        ids, features = model._loaded.encoder.encode(prompt, 1), model.encode(image)._features
        best.append(model._loaded.engine.prefill(cache, slot, features, ids).best)
    return best[0]
