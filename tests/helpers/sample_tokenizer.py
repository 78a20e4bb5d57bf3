"""The sample model's tokenizer, and what a grammar allows in its ids."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path

import numpy as np

from paligemma_edge.runtime.grammar.base import State
from paligemma_edge.runtime.manifest import TokenizerConfig
from paligemma_edge.runtime.text.tokenizer import PromptEncoder

MODEL = Path(__file__).parents[2] / "samples/shapes/checkpoint/tokenizer.model"
EOS, MASK, LOC, SEG, IMAGE = 1, 4, 1000, 2024, 2152
CONFIG = TokenizerConfig(
    file="",
    pad_id=0,
    eos_ids=(EOS,),
    bos_id=2,
    newline_id=5,
    first_loc_id=LOC,
    first_seg_id=SEG,
    image_id=IMAGE,
)


@cache
def encoder() -> PromptEncoder:
    return PromptEncoder(MODEL, CONFIG)


@cache
def encoder_with_two_ends() -> PromptEncoder:
    """Answers end with `<eos>` or with `<mask>`, a piece with a text of its own."""
    return PromptEncoder(MODEL, dataclasses.replace(CONFIG, eos_ids=(EOS, MASK)))


def ids(state: State) -> list[int]:
    """The tokens that a state allows, at least one."""
    allowed = state.allowed
    if allowed is None:
        return list(range(IMAGE))
    if allowed.dtype == np.bool_:
        assert allowed.shape == (IMAGE,)
        allowed = np.flatnonzero(allowed)
    tokens: list[int] = allowed.tolist()
    assert tokens and tokens == sorted(set(tokens))
    return tokens
