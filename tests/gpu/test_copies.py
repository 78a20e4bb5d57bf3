"""A greedy token costs ids and lengths to the GPU, and the choice back."""

from __future__ import annotations

import pytest

from tests.gpu.on_gpu import NARROW, Requests, Where

pytestmark = pytest.mark.gpu
SLOTS = 3


def test_a_step_copies_what_it_says_and_no_logits(where: Where, requests: Requests) -> None:
    model, copies = where.counted(NARROW, "cuda-fp16")
    engine, (image, prompt) = model._loaded.engine, requests[0]
    encoded = model.encode(image)
    ids = model._loaded.encoder.encode(prompt, 1)
    copies.take()
    features, pixels = encoded._features, 3 * 224 * 224 * 4
    assert copies.take() == (pixels, 0)  # what is seen of an image stays where it is
    cache = engine.cache(SLOTS, 400)
    tokens = [engine.prefill(cache, slot, features, ids).best for slot in range(SLOTS)]
    stepper = engine.stepper(cache, SLOTS)
    stepper.step(tokens)
    copies.take()
    for _ in range(8):
        logits = stepper.step(tokens)
        tokens = [logits[slot].best for slot in range(SLOTS)]
        assert all(logits[slot].log_prob(token) <= 0 for slot, token in enumerate(tokens))
        assert copies.take() == (SLOTS * (8 + 4), SLOTS * (8 + 4))
