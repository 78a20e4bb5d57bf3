"""Answers that match a pattern: what is allowed matches, what matches is allowed."""

from __future__ import annotations

import gc
import re
import sys
import weakref
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paligemma_edge.runtime.errors import MissingExtraError, OptionError
from paligemma_edge.runtime.grammar.regex import MAX_PATTERN, Regex
from paligemma_edge.runtime.text.tokenizer import PromptEncoder
from tests.helpers.sample_tokenizer import (
    CONFIG,
    EOS,
    MASK,
    MODEL,
    encoder,
    encoder_with_two_ends,
    ids,
)

CONTROL = {0, 1, 2, 3}
PATTERNS = {
    "yes|no|not sure": "not sure",
    "[0-9]{2}:[0-9]{2}": "23:59",
    "(<loc[0-9]{4}>){4}": "<loc0001><loc0002><loc0003><loc1023>",
    "[a-z]+( [a-z]+)*": "two red circles",
    "a?": "a",
    ".*": "anything <loc0001>, 日本語 😀",
    "x(a|b)*y": "xabbay",
    "é+|日本": "日本",
    "(?i)yes": "yEs",
    "a/b\nc\\\\": "a/b\nc\\",
    "<eos>|<image>": "<image>",
    "^[^,]+, [^,]+$": "one, two",
}


@settings(max_examples=200)
@given(st.sampled_from(sorted(PATTERNS)), st.integers(0, 2**32 - 1))
def test_whatever_may_be_said_matches(pattern: str, seed: int) -> None:
    random, state, tokens = np.random.default_rng(seed), Regex(pattern).start(encoder()), [0]
    while tokens[-1] != EOS:
        allowed = ids(state)
        assert not set(allowed) & CONTROL - {EOS}
        stop = EOS in allowed and random.random() < 0.05 + len(tokens) / 100
        tokens.append(EOS if stop else int(random.choice(allowed)))
        state = state.after(tokens[-1])
    assert ids(state) == [EOS]
    assert re.fullmatch(pattern, encoder().decode(tokens))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_whatever_matches_may_be_said(pattern: str) -> None:
    state = Regex(pattern).start(encoder())
    for token in encoder().continuation(PATTERNS[pattern]):
        assert token in ids(state)
        state = state.after(token)
    assert EOS in ids(state)


def test_the_end_is_allowed_only_where_the_pattern_may_end() -> None:
    start = Regex("ab?").start(encoder())
    assert EOS not in ids(start)
    (a,) = encoder().continuation("a")
    (b,) = encoder().continuation("b")
    assert ids(start.after(a))[0] == EOS
    assert ids(start.after(a).after(b)) == [EOS]


def test_any_of_several_ends_is_allowed_where_the_pattern_may_end() -> None:
    start = Regex("(ab?|<mask>)").start(encoder_with_two_ends())
    (a,) = encoder().continuation("a")
    assert not {EOS, MASK} & set(ids(start))  # an end is no part of a text
    assert ids(start.after(a))[:2] == [EOS, MASK]
    assert ids(start.after(a).after(MASK)) == [EOS, MASK]


def test_a_state_is_a_value() -> None:
    start = Regex("a[ab]{2}").start(encoder())
    (a,) = encoder().continuation("a")
    before = ids(start)
    once = start.after(a)
    twice = once.after(a)
    assert EOS in ids(twice.after(a))
    assert EOS not in ids(twice)
    assert ids(once) != before
    assert ids(start.after(a)) == ids(once)
    assert ids(start) == before


def test_many_tokens_are_flags_and_few_are_ids() -> None:
    many, few = (Regex(pattern).start(encoder()).allowed for pattern in (".*", "a"))
    assert many is not None and few is not None
    assert many.dtype == np.bool_
    assert few.dtype == np.intp


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("(a", "unclosed group"),
        ("a(?=b)", "look-around, including look-ahead and look-behind, is not supported"),
        (r"(a)\1", "backreferences are not supported"),
        (r"\bword", "lookarounds not supported yet"),
        (r"[^\s\S]", "no text matches it"),
        ("", "nothing but the empty text matches it"),
        ("a{0}", "nothing but the empty text matches it"),
        ("(" * 5000 + ")" * 5000, "nested"),
        ("((a{100}){100}){100}", "it is too large"),
        ("(a?){1000}a{1000}", "too many expressions"),
    ],
)
def test_a_pattern_that_cannot_be_used_is_refused_in_one_line(pattern: str, reason: str) -> None:
    with pytest.raises(OptionError, match=f"^the pattern .* cannot be used: .*{reason}") as caught:
        Regex(pattern).start(encoder())
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_pattern_that_grows_too_large_midway_is_refused_there() -> None:
    random, state = np.random.default_rng(0), Regex("((.{1,500}){1,500}){1,500}").start(encoder())
    with pytest.raises(OptionError, match=r"cannot be used: .*too many expressions"):
        for _ in range(500):
            state = state.after(int(random.choice([i for i in ids(state) if i != EOS])))


@pytest.mark.parametrize("pattern", [5, None, "a\ud800", "a" * (MAX_PATTERN + 1)])
def test_what_is_no_pattern_is_refused(pattern: Any) -> None:  # noqa: ANN401
    with pytest.raises(OptionError, match=r"^the pattern (is|has) .*wanted"):
        Regex(pattern)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'paligemma-edge\[grammar\]'"):
        Regex("a").start(encoder())


def test_the_tree_of_a_vocabulary_is_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import llguidance

    built = []
    real = llguidance.LLTokenizer

    def counted(*arguments: Any) -> llguidance.LLTokenizer:  # noqa: ANN401
        built.append(1)
        return real(*arguments)

    monkeypatch.setattr(llguidance, "LLTokenizer", counted)
    fresh = PromptEncoder(MODEL, CONFIG)
    for pattern in ("a", "b", "a"):
        Regex(pattern).start(fresh)
    assert built == [1]


def test_a_tokenizer_is_let_go_and_a_state_keeps_it() -> None:
    fresh = PromptEncoder(MODEL, CONFIG)
    state = Regex("red circle").start(fresh)
    held = weakref.ref(fresh)
    del fresh
    text = b""
    while (token := ids(state)[0]) != EOS:
        text += encoder().token_bytes(token)
        state = state.after(token)
    assert text == b"red circle"
    del state
    gc.collect()
    assert held() is None
