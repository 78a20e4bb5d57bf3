"""Grammars, policies and choices pick what they would from the same logits on the host."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from paligemma_edge import Choices, PaliGemma, TopSampling
from paligemma_edge.runtime.engine.device_logits import DeviceRow
from paligemma_edge.runtime.engine.logits import HostRow, Row
from paligemma_edge.runtime.generation import loop
from paligemma_edge.runtime.generation.sampling import Sampling
from paligemma_edge.runtime.generation.select_token import select_token
from paligemma_edge.runtime.grammar.base import Allowed
from tests.gpu.on_gpu import Requests
from tests.helpers.object_form import CORNERS

pytestmark = pytest.mark.gpu
POLICIES = (
    TopSampling(temperature=0.8, top_k=20, seed=3),
    TopSampling(temperature=2.0, top_k=5, top_p=0.9, seed=4),
    TopSampling(temperature=1.0, top_p=0.8, seed=5),
    TopSampling(temperature=1.5, seed=6),
)


@pytest.fixture
def compared(patched: pytest.MonkeyPatch) -> list[int]:
    """Lets each choice be made twice; the tokens that were chosen."""
    tokens: list[int] = []

    def twice(sampling: Sampling, row: Row, allowed: Allowed | None, position: int) -> int:
        assert isinstance(row, DeviceRow)
        token = select_token(sampling, row, allowed, position)
        same = HostRow(row.whole.copy(), row.logits.outputs.image_id)
        assert token == select_token(sampling, same, allowed, position)
        assert row.log_prob(token) == pytest.approx(same.log_prob(token), abs=1e-4)
        wanted = same.log_prob_of_any(CORNERS)
        assert row.log_prob_of_any(CORNERS) == pytest.approx(wanted, abs=1e-4)
        tokens.append(token)
        return token

    patched.setattr(loop, "select_token", twice)
    return tokens


def images(requests: Requests) -> list[Path]:
    return list(dict.fromkeys(image for image, _ in requests))


def test_grammars(fp16: PaliGemma, requests: Requests, compared: list[int]) -> None:
    for image in images(requests)[:4]:
        with fp16.encode(image) as encoded:
            encoded.detect("square ; circle ; star")
            encoded.detect("square ; circle", labels="any")
            assert all(actual.decoded_mask is not None for actual in encoded.segment("star ; ring"))
    assert len(compared) > 100


@pytest.mark.parametrize("sampling", POLICIES, ids=str)
def test_policies(
    sampling: Sampling, fp16: PaliGemma, requests: Requests, compared: list[int]
) -> None:
    fp16.generate_batch(requests[:4], max_batch_size=2, sampling=sampling, max_new_tokens=16)
    assert len(compared) > 16


def test_a_closed_set(fp16: PaliGemma, requests: Requests, compared: list[int]) -> None:
    answers = ("red", "a small green star", "blue")
    actual = fp16.generate(*requests[0], grammar=Choices(answers))
    assert actual.text in answers
    assert compared == list(actual.token_ids)


def test_scores_of_choices_are_those_of_the_lossless_variant(
    fp16: PaliGemma, lossless: PaliGemma, requests: Requests
) -> None:
    for image in images(requests)[:4]:
        arguments = (image, "answer en what color is it?", ["black", "red", "a red star"])
        actual, expected = (model.classify(*arguments).log_probs for model in (fp16, lossless))
        np.testing.assert_allclose(list(actual.values()), list(expected.values()), atol=0.05)


def test_objects_are_those_of_the_lossless_variant(
    fp16: PaliGemma, lossless: PaliGemma, requests: Requests
) -> None:
    for image in images(requests)[:4]:
        actual, expected = (
            model.segment(image, "star ; ring ; square") for model in (fp16, lossless)
        )
        if actual.text == expected.text:
            for one, other in zip(actual, expected, strict=True):
                assert one.soft_mask is not None and other.soft_mask is not None
                np.testing.assert_allclose(one.soft_mask, other.soft_mask, atol=0.02)
