"""What a generation tells of the objects in it, token by token."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from paligemma_edge.runtime.results.confidence import (
    ObjectLogProbs,
    confidence_of,
    finite,
    object_log_prob,
)
from paligemma_edge.runtime.results.generation import Generation, decode_with_offsets
from tests.helpers.sample_tokenizer import EOS, LOC, SEG, encoder

BOX = [LOC + number for number in (1, 2, 3, 4)]
MASK = [SEG + 5] * 16


def generation(tokens: Sequence[int], boxes: Sequence[int]) -> Generation:
    """An answer whose n-th token has the log-probability -n; a box there half of that."""
    text, offsets = decode_with_offsets(encoder(), tokens)
    return Generation(
        prompt="segment cat",
        text=text,
        token_ids=tuple(tokens),
        log_probs=tuple(-float(place) for place in range(len(tokens))),
        char_offsets=offsets,
        box_log_probs={place: -place / 2 for place in boxes},
        finish_reason="stop",
        seconds={},
    )


def ids(text: str) -> list[int]:
    return list(encoder().continuation(text))


def places(first: int, count: int) -> tuple[float, ...]:
    return tuple(-float(place) for place in range(first, first + count))


def test_the_parts_of_each_object_have_the_log_probs_of_their_tokens() -> None:
    label, separator = ids(" red star"), ids(" ; ")
    tokens = [*BOX, *MASK, *label, *separator, *BOX, *label[:1], EOS]
    second = 20 + len(label) + len(separator)
    one, two = generation(tokens, [0, second]).object_log_probs
    assert one == ObjectLogProbs((), 0.0, places(0, 4), places(4, 16), places(20, len(label)))
    assert two == ObjectLogProbs(
        separator=places(20 + len(label), len(separator)),
        box=-second / 2,
        corners=places(second, 4),
        codes=(),
        label=places(second + 4, 1),
    )


def test_a_label_may_consist_of_pieces_of_characters() -> None:
    label = ids(" 日本")
    assert len(label) > 3
    tokens = [*BOX, *label, *ids(" ;"), *BOX, *label[:-1]]  # the last character is not complete
    one, two = generation(tokens, [0, 5 + len(label)]).object_log_probs
    assert one.label == places(4, len(label))
    assert two.label == places(9 + len(label), len(label) - 1)


def test_what_stands_before_the_first_object_does_not_count() -> None:
    words = ids(" look here")
    tokens = [*words, *BOX, EOS]
    (one,) = generation(tokens, [len(words)]).object_log_probs
    assert one == ObjectLogProbs((), -len(words) / 2, places(len(words), 4), (), ())
    assert generation([*words, EOS], []).object_log_probs == ()


def test_an_object_is_as_likely_as_that_one_begins_with_this_label() -> None:
    parts = ObjectLogProbs((-1.0, -2.0), -0.5, (-9.0,) * 4, (-9.0,) * 16, (-0.25, -0.125))
    assert object_log_prob(parts) == -3.875


@pytest.mark.parametrize(("log_prob", "confidence"), [(0.0, 1), (1e-7, 1), (-float("inf"), 0)])
def test_a_confidence_is_a_probability(log_prob: float, confidence: float) -> None:
    assert confidence_of(log_prob) == confidence
    assert confidence_of(finite(log_prob)) == confidence
