"""One prompt through the engine, compared with the answers of the whole pipeline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from paligemma_edge import PaliGemma
from paligemma_edge.runtime.engine.logits import Row
from paligemma_edge.runtime.engine.replay import EncodedPrompt, greedy, replay
from paligemma_edge.runtime.loading.loaded_model import LoadedModel

PROMPT = "detect star"


@pytest.fixture(scope="module")
def image(shapes_images: Path) -> Path:
    return shapes_images / "00.png"


@pytest.fixture(scope="module")
def encoded(shapes_loaded: LoadedModel, image: Path) -> EncodedPrompt:
    pipeline = shapes_loaded.pipeline
    return pipeline.encode(pipeline.read_images([image]), PROMPT)


@pytest.fixture(scope="module")
def answer(shapes_model: PaliGemma, image: Path) -> list[int]:
    """What the pipeline answers, its end included."""
    generation = shapes_model.generate(image, PROMPT)
    assert generation.finish_reason == "stop"
    assert len(generation.token_ids) > 3
    return list(generation.token_ids)


def _greedy(model: PaliGemma, encoded: EncodedPrompt, limit: int) -> list[int]:
    eos_ids = model.bundle.manifest.tokenizer.eos_ids
    return [token for token, _ in greedy(model._loaded.engine, encoded, limit, eos_ids)]


def test_a_greedy_answer_ends_as_the_pipelines_does(
    shapes_model: PaliGemma, encoded: EncodedPrompt, answer: list[int]
) -> None:
    assert _greedy(shapes_model, encoded, 64) == answer


@pytest.mark.parametrize("limit", [1, 3])
def test_a_greedy_answer_stops_at_its_limit(
    shapes_model: PaliGemma, encoded: EncodedPrompt, answer: list[int], limit: int
) -> None:
    assert _greedy(shapes_model, encoded, limit) == answer[:limit]


def test_a_greedy_answer_takes_what_is_chosen(
    shapes_model: PaliGemma, encoded: EncodedPrompt, answer: list[int]
) -> None:
    """The logits that follow another token are those of that token."""

    def second(row: Row) -> int:
        return int(np.argsort(row.answer_logits)[-2])

    eos_ids = shapes_model.bundle.manifest.tokenizer.eos_ids
    chosen, seen = [], []
    for token, row in greedy(shapes_model._loaded.engine, encoded, 3, eos_ids, choose=second):
        chosen.append(token)
        seen.append(row.answer_logits.copy())
    assert chosen[0] != answer[0]
    for expected, row in zip(
        seen, replay(shapes_model._loaded.engine, encoded, chosen), strict=True
    ):
        np.testing.assert_array_equal(row.answer_logits, expected)


def test_a_replayed_answer_has_the_logits_that_it_was_chosen_from(
    shapes_loaded: LoadedModel, encoded: EncodedPrompt, answer: list[int]
) -> None:
    rows = replay(shapes_loaded.engine, encoded, answer)
    assert [row.best for row in rows] == answer


def test_a_replay_feeds_what_is_given_and_not_what_is_chosen(
    shapes_loaded: LoadedModel, encoded: EncodedPrompt, answer: list[int]
) -> None:
    other = [answer[0] + 1, *answer[1:]]
    ours = [row.answer_logits.copy() for row in replay(shapes_loaded.engine, encoded, answer)]
    theirs = [row.answer_logits.copy() for row in replay(shapes_loaded.engine, encoded, other)]
    assert len(ours) == len(theirs) == len(answer)
    np.testing.assert_array_equal(ours[0], theirs[0])
    assert np.abs(ours[1] - theirs[1]).max() > 1e-3


def test_a_replay_of_one_token_is_a_prefill_alone(
    shapes_loaded: LoadedModel, encoded: EncodedPrompt, answer: list[int]
) -> None:
    (row,) = replay(shapes_loaded.engine, encoded, answer[:1])
    assert row.best == answer[0]


def test_the_length_counts_images_and_text(
    shapes_loaded: LoadedModel, encoded: EncodedPrompt
) -> None:
    tokens = shapes_loaded.engine.config.image_tokens
    assert encoded.length == tokens + len(shapes_loaded.encoder.encode(PROMPT, 1))
