"""Answers that match a regular expression, which llguidance reads.

Knows how llguidance is called, and its errors for patterns that it does not accept. Knows nothing
of patterns themselves.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING
from weakref import ReferenceType, ref

import numpy as np

from paligemma_edge.runtime.errors import MissingExtraError, OptionError
from paligemma_edge.runtime.grammar.base import Allowed, EndState, State
from paligemma_edge.runtime.text.tokenizer import PromptEncoder

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

MAX_PATTERN = 10_000  # characters
_FEW = 16  # where fewer than 1 in 16 tokens is allowed, ids are quicker than flags
_SURROGATE = re.compile("[\ud800-\udfff]")  # half a character


@dataclass(frozen=True)
class Regex:
    r"""A grammar whose answers match a regular expression as a whole.

    Args:
        pattern: a regular expression of Rust's regex crate, at most MAX_PATTERN characters: most
            of Python's, without look-around and back-references; `.` is any character except a
            line break.

    Raises:
        OptionError: the pattern is not a text, or too long. Whether it can be used otherwise is
            checked when an answer is generated.

    Example:
        >>> model.generate("meter.jpg", "answer en what is read?", grammar=Regex("[0-9]{5}")).text
        '04217'

    Source: https://docs.rs/regex/latest/regex/#syntax
    """

    pattern: str

    def __post_init__(self) -> None:
        if not isinstance(self.pattern, str) or _SURROGATE.search(self.pattern):
            raise OptionError(
                f"the pattern is {self.pattern!r}, wanted a regular expression such as '[0-9]+'"
            )
        if len(self.pattern) > MAX_PATTERN:
            raise OptionError(
                f"the pattern has {len(self.pattern)} characters, wanted at most {MAX_PATTERN}; "
                "shorten it"
            )

    def start(self, encoder: PromptEncoder) -> State:
        """The state before an answer.

        OptionError where llguidance cannot read the pattern, only the empty text matches it, or
        it grows too large; MissingExtraError where llguidance is not installed.
        """
        start = _RegexState(self.pattern, encoder, _matcher(self.pattern, encoder))
        ids = np.flatnonzero(start.allowed) if start.allowed.dtype == np.bool_ else start.allowed
        first = np.setdiff1d(ids, encoder.config.eos_ids)
        if not len(first):
            raise _refused(self.pattern, "nothing but the empty text matches it")
        # A pattern that grows too large does so after the first token: fail here, not midway.
        _ = start.after(int(first[0])).allowed
        return start


@dataclass(frozen=True, eq=False)
class _RegexState:
    """The answer so far is the start of a match. Keeps the tokenizer alive for llguidance."""

    pattern: str
    encoder: PromptEncoder
    matcher: LLMatcher

    @cached_property
    def allowed(self) -> Allowed:
        bits = np.frombuffer(self.matcher.compute_bitmask(), np.uint8)
        if self.matcher.is_error():
            raise _refused(self.pattern, _reason(self.matcher.get_error()))
        config = self.encoder.config
        image_id, eos_ids = config.image_id, list(config.eos_ids)
        flags = np.unpackbits(bits, count=image_id, bitorder="little").view(np.bool_)
        flags[eos_ids] = flags[eos_ids[0]]  # the one that llguidance knows
        few = np.count_nonzero(flags) * _FEW < image_id
        return np.flatnonzero(flags) if few else flags

    def after(self, token: int) -> State:
        eos_ids = self.encoder.config.eos_ids
        if token in eos_ids:
            return EndState(eos_ids)
        matcher = self.matcher.deep_copy()
        matcher.consume_token(token)
        return _RegexState(self.pattern, self.encoder, matcher)


class _Vocabulary:
    """A tokenizer in the form that llguidance reads; does not keep it alive."""

    def __init__(self, encoder: PromptEncoder) -> None:
        config = encoder.config
        self.eos_token_id = config.eos_ids[0]
        self.bos_token_id = config.bos_id
        self.tokens = encoder.vocabulary
        self._encoder: ReferenceType[PromptEncoder] = ref(encoder)

    def __call__(self, text: bytes) -> list[int]:
        encoder = self._encoder()
        assert encoder is not None, "a state keeps its tokenizer alive"
        return list(encoder.continuation(text.decode()))


def _tokenizer(encoder: PromptEncoder) -> LLTokenizer:
    """llguidance's tree of the vocabulary; a real vocabulary takes a third of a second."""
    from llguidance import LLTokenizer, TokenizerWrapper

    return LLTokenizer(TokenizerWrapper(_Vocabulary(encoder)))


def _matcher(pattern: str, encoder: PromptEncoder) -> LLMatcher:
    try:
        from llguidance import LLMatcher
    except ModuleNotFoundError as missing:
        if missing.name != "llguidance":
            raise
        raise MissingExtraError(
            "a regular expression needs the package llguidance, which is not installed; "
            "run: pip install 'paligemma-edge[grammar]'"
        ) from None
    grammar = LLMatcher.grammar_from_regex(pattern)
    return LLMatcher(encoder.once(_tokenizer), grammar, log_level=0)


def _refused(pattern: str, reason: str) -> OptionError:
    return OptionError(
        f"the pattern {pattern[:60]!r} cannot be used: {reason}; wanted a regular expression such "
        "as '[0-9]+', without look-around and back-references"
    )


def _reason(error: str) -> str:
    """The relevant line of an error of llguidance."""
    if error.startswith("NoExtension"):
        return "no text matches it"
    if error.startswith("panic"):
        return "it is too large"
    if match := re.search(r"^error: (.*)$", error, re.MULTILINE):
        return match[1]
    line = error.partition("\n")[0].rpartition("(in regex): ")[2]
    return line.partition(" in regex /")[0][:200]
