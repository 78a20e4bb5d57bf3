"""The answers of `detect` and `segment`: boxes, codes of masks and labels, and nothing else.

An object is `<locY0><locX0><locY1><locX1>`, sixteen `<seg>` where masks are asked for, and
` label`. Objects are joined by ` ; `, and there may be none. No box is empty. A label that was
asked for has the tokens that training would have written; where any label will do, there may be
none, as models say that were fine-tuned to find the one thing that a prompt describes. Whatever
is said, `answer.parse` reads it all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from paligemma_edge.runtime.contract import CODES_PER_MASK, LOC_COUNT, SEG_COUNT
from paligemma_edge.runtime.grammar.base import Allowed, EndState, State, answer_tokens
from paligemma_edge.runtime.grammar.free_labels import SEPARATOR, FreeText
from paligemma_edge.runtime.grammar.trie import TokenTrie
from paligemma_edge.runtime.text.labels import checked_labels
from paligemma_edge.runtime.text.tokenizer import PromptEncoder


@dataclass(frozen=True)
class ObjectGrammar:
    """Objects that have one of the labels; where `labels` is None, any label at all, or none.

    Labels are kept each once, blanks as single ones. PromptError where there is no label, or one
    that is empty or holds ";", "<" or ">".
    """

    labels: tuple[str, ...] | None
    masks: bool

    def __post_init__(self) -> None:
        if self.labels is not None:
            object.__setattr__(self, "labels", checked_labels(self.labels))

    def start(self, encoder: PromptEncoder) -> State:
        """The place before an answer; PromptError where the tokenizer cannot write a label."""
        return _Start(_Rules.of(self, encoder))


@dataclass(frozen=True, eq=False)
class _Rules:
    """A grammar in the ids of one tokenizer."""

    locations: NDArray[np.intp]  # [1024]
    codes: NDArray[np.intp]  # [128]
    ended: EndState
    masks: bool
    names: TokenTrie | FreeText

    @classmethod
    def of(cls, grammar: ObjectGrammar, encoder: PromptEncoder) -> Self:
        config = encoder.config
        return cls(
            locations=config.first_loc_id + np.arange(LOC_COUNT),
            codes=config.first_seg_id + np.arange(SEG_COUNT),
            ended=EndState(config.eos_id),
            masks=grammar.masks,
            names=_names(grammar.labels, encoder),
        )

    def after_box(self) -> State:
        return _Codes(self, CODES_PER_MASK) if self.masks else self.after_codes()

    def after_codes(self) -> State:
        if isinstance(self.names, TokenTrie):
            return _Name(self, self.names, 0)
        return _Words(self, self.names, self.names.after_box)


@dataclass(frozen=True)
class _Start:
    """Before the first object, where the answer may end: nothing was found."""

    rules: _Rules

    @property
    def allowed(self) -> Allowed:
        corners = self.rules.locations[:-1]
        return np.sort(np.append(corners, self.rules.ended.eos_id))

    def after(self, token: int) -> State:
        if token == self.rules.ended.eos_id:
            return self.rules.ended
        return _Corners(self.rules, ()).after(token)


@dataclass(frozen=True)
class _Corners:
    """Within a box: the numbers so far of y0, x0, y1 and x1."""

    rules: _Rules
    numbers: tuple[int, ...]

    @property
    def allowed(self) -> Allowed:
        if len(self.numbers) < 2:
            return self.rules.locations[:-1]  # the other corner lies beyond it
        return self.rules.locations[self.numbers[-2] + 1 :]

    def after(self, token: int) -> State:
        numbers = (*self.numbers, token - int(self.rules.locations[0]))
        if len(numbers) < 4:
            return _Corners(self.rules, numbers)
        return self.rules.after_box()


@dataclass(frozen=True)
class _Codes:
    """Within a mask: how many codes are left."""

    rules: _Rules
    left: int

    @property
    def allowed(self) -> Allowed:
        return self.rules.codes

    def after(self, token: int) -> State:  # noqa: ARG002 - any code
        if self.left > 1:
            return _Codes(self.rules, self.left - 1)
        return self.rules.after_codes()


@dataclass(frozen=True)
class _Name:
    """Within one of the labels and the end or separator behind it."""

    rules: _Rules
    names: TokenTrie
    place: int

    @property
    def allowed(self) -> Allowed:
        return self.names.tokens[self.place]

    def after(self, token: int) -> State:
        place = self.names.next[self.place][token]
        if not self.names.is_end(place):
            return _Name(self.rules, self.names, place)
        ended = self.rules.ended
        return ended if token == ended.eos_id else _Corners(self.rules, ())


@dataclass(frozen=True)
class _Words:
    """Within a label of any words: flags of what may follow."""

    rules: _Rules
    words: FreeText
    allowed: NDArray[np.bool_]

    def after(self, token: int) -> State:
        if token == self.rules.ended.eos_id:
            return self.rules.ended
        if (rest := self.words.separators.get(token)) is not None:
            return _after_separator(self.rules, rest)
        return _Words(self.rules, self.words, self.words.after(token))


@dataclass(frozen=True)
class _Separator:
    """Within a separator: the tokens that are left of it."""

    rules: _Rules
    rest: tuple[int, ...]

    @property
    def allowed(self) -> Allowed:
        return np.array(self.rest[:1])

    def after(self, token: int) -> State:
        assert token == self.rest[0]
        return _after_separator(self.rules, self.rest[1:])


def _after_separator(rules: _Rules, rest: tuple[int, ...]) -> State:
    return _Separator(rules, rest) if rest else _Corners(rules, ())


def _names(labels: tuple[str, ...] | None, encoder: PromptEncoder) -> TokenTrie | FreeText:
    if labels is None:
        return encoder.once(FreeText.of)
    eos_id = encoder.config.eos_id
    texts = [f" {label}" for label in labels]
    last = ((*answer_tokens(encoder, text), eos_id) for text in texts)
    return TokenTrie.of([*last, *(answer_tokens(encoder, text + SEPARATOR) for text in texts)])
