"""Log-probabilities of tokens that are parts of characters, ends, or impossible."""

from __future__ import annotations

import math

import pytest

from paligemma_edge import PaliGemma
from paligemma_edge.runtime.results.generation import (
    Generation,
    TokenLogProb,
    decode_with_offsets,
)
from paligemma_edge.runtime.serve.chat_logprobs import answer_logprobs, token_logprobs
from paligemma_edge.runtime.text.tokenizer import PromptEncoder


@pytest.fixture(scope="module")
def encoder(shapes_model: PaliGemma) -> PromptEncoder:
    return shapes_model._loaded.encoder


def answer(encoder: PromptEncoder, *tokens: int) -> Generation:
    text, char_offsets = decode_with_offsets(encoder, tokens)
    return Generation(
        prompt="",
        text=text,
        token_ids=tokens,
        log_probs=(-0.5,) * len(tokens),
        char_offsets=char_offsets,
        box_log_probs={},
        finish_reason="stop",
        seconds={},
    )


def test_parts_of_a_character_are_told_by_their_bytes(encoder: PromptEncoder) -> None:
    parts = encoder.continuation("\N{SAUROPOD}")
    assert len(parts) > 1  # the tokenizer falls back to bytes
    generation = answer(encoder, *parts, encoder.config.eos_ids[0])
    told = answer_logprobs(encoder, generation, len(generation.text))
    assert b"".join(bytes(one.bytes or ()) for one in told).decode() == "\N{SAUROPOD}"


def test_an_end_has_none_even_after_half_a_character(encoder: PromptEncoder) -> None:
    half = encoder.continuation("\N{SAUROPOD}")[:-1]
    generation = answer(encoder, *half, encoder.config.eos_ids[0])
    assert generation.text.endswith("\ufffd")
    assert len(answer_logprobs(encoder, generation, len(generation.text))) == len(half)


def test_what_is_impossible_is_a_number_too(encoder: PromptEncoder) -> None:
    token = encoder.continuation("star")[0]
    impossible = TokenLogProb(token, -math.inf)
    told = token_logprobs(encoder, impossible, [impossible])
    assert (told.logprob, told.top_logprobs[0].logprob) == (-9999.0, -9999.0)


def test_an_end_among_the_likeliest_has_a_name(encoder: PromptEncoder) -> None:
    token, end = encoder.continuation("star")[0], encoder.config.eos_ids[0]
    told = token_logprobs(encoder, TokenLogProb(token, -1), [TokenLogProb(end, -0.5)])
    assert [(one.token, one.bytes) for one in told.top_logprobs] == [("<eos>", None)]
