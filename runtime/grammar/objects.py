"""The answers of `detect` and `segment`: boxes, codes of masks and labels, and nothing else.

An object is `<locY0><locX0><locY1><locX1>`, for `segment` also sixteen `<seg>`, and a label.
Objects are joined by " ; ", and there may be none. No box is empty.

Where labels are the model's own, the grammar holds this form alone: it allows every answer that
`parse_answer` reads as objects, with or without labels, blanks and separators, and so changes no
answer that is of the form. A model that begins with neither an object nor the end has no objects to
give, and goes on in its own words. Where labels are a closed set, each has the tokens that training
would have given it, and the model has to begin with one of the objects or with the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Self

import numpy as np
from numpy.typing import NDArray

from paligemma_edge.runtime.contract import CODES_PER_MASK, LOC_COUNT, SEG_COUNT
from paligemma_edge.runtime.grammar.base import (
    Allowed,
    EndState,
    State,
    answer_tokens,
    ended_answers,
)
from paligemma_edge.runtime.grammar.object_tokens import ObjectTokens
from paligemma_edge.runtime.grammar.trie import TokenTrie
from paligemma_edge.runtime.text.labels import checked_labels
from paligemma_edge.runtime.text.tokenizer import PromptEncoder

SEPARATOR = " ; "


@dataclass(frozen=True)
class ObjectGrammar:
    """Objects with labels of the model's own, or with those of a closed set.

    Args:
        labels: the closed set, without duplicates and extra blanks; None for the model's own.
        masks: whether objects have masks: all of them with a closed set, those that the model
            gives one with labels of its own.

    Raises:
        PromptError: `labels` is empty, or a label is empty or holds ";", "<" or ">".
    """

    labels: tuple[str, ...] | None
    masks: bool

    def __post_init__(self) -> None:
        if self.labels is not None:
            object.__setattr__(self, "labels", checked_labels(self.labels))

    def start(self, encoder: PromptEncoder) -> State:
        """The state before an answer; PromptError where the tokenizer cannot write a label."""
        return _Start(_Rules.of(self, encoder))


@dataclass(frozen=True, eq=False)
class _Rules:
    """A grammar in the ids of one tokenizer."""

    locations: NDArray[np.intp]  # [1024]
    codes: NDArray[np.intp]  # [128]
    end: EndState
    masks: bool
    labels: TokenTrie | ObjectTokens

    @classmethod
    def of(cls, grammar: ObjectGrammar, encoder: PromptEncoder) -> Self:
        config = encoder.config
        return cls(
            locations=config.first_loc_id + np.arange(LOC_COUNT),
            codes=config.first_seg_id + np.arange(SEG_COUNT),
            end=EndState(config.eos_ids),
            masks=grammar.masks,
            labels=_label_tokens(grammar.labels, encoder),
        )

    def after_box(self) -> State:
        if isinstance(self.labels, TokenTrie):
            return _InMask(self, CODES_PER_MASK) if self.masks else self.after_codes()
        return _InOwnLabel(self, self.labels, may_have_mask=self.masks)

    def after_codes(self) -> State:
        if isinstance(self.labels, TokenTrie):
            return _InLabel(self, self.labels, 0)
        return _InOwnLabel(self, self.labels, may_have_mask=False)

    def is_location(self, token: int) -> bool:
        return 0 <= token - int(self.locations[0]) < LOC_COUNT

    def is_code(self, token: int) -> bool:
        return 0 <= token - int(self.codes[0]) < SEG_COUNT


@dataclass(frozen=True)
class _Start:
    """Before the first object, where the answer may end: there are no objects."""

    rules: _Rules

    @property
    def allowed(self) -> Allowed:
        if isinstance(self.rules.labels, ObjectTokens):
            return self.rules.labels.first
        corners = self.rules.locations[:-1]
        return np.sort(np.append(corners, self.rules.end.eos_ids))

    def after(self, token: int) -> State:
        if token in self.rules.end.eos_ids:
            return self.rules.end
        if self.rules.is_location(token):
            return _InBox(self.rules, ()).after(token)
        return _InWords(self.rules.end)


@dataclass(frozen=True)
class _InWords:
    """Within an answer that is no object: anything may follow."""

    end: EndState
    allowed: None = None

    def after(self, token: int) -> State:
        return self.end if token in self.end.eos_ids else self


@dataclass(frozen=True)
class _InBox:
    """Within a box: those of the numbers y0, x0, y1 and x1 that were given so far."""

    rules: _Rules
    numbers: tuple[int, ...]

    @property
    def allowed(self) -> Allowed:
        if len(self.numbers) < 2:
            return self.rules.locations[:-1]  # the opposite corner is beyond it
        return self.rules.locations[self.numbers[-2] + 1 :]

    def after(self, token: int) -> State:
        numbers = (*self.numbers, token - int(self.rules.locations[0]))
        if len(numbers) < 4:
            return _InBox(self.rules, numbers)
        return self.rules.after_box()


@dataclass(frozen=True)
class _InMask:
    """Within a mask: the number of codes that are still to come."""

    rules: _Rules
    left: int

    @property
    def allowed(self) -> Allowed:
        return self.rules.codes

    def after(self, token: int) -> State:  # noqa: ARG002 - any code
        if self.left > 1:
            return _InMask(self.rules, self.left - 1)
        return self.rules.after_codes()


@dataclass(frozen=True)
class _InLabel:
    """Within one of the labels and the end or separator after it."""

    rules: _Rules
    labels: TokenTrie
    node: int

    @property
    def allowed(self) -> Allowed:
        return self.labels.tokens[self.node]

    def after(self, token: int) -> State:
        child = self.labels.next[self.node][token]
        if not self.labels.is_end(child):
            return _InLabel(self.rules, self.labels, child)
        end = self.rules.end
        return end if token in end.eos_ids else _InBox(self.rules, ())


@dataclass(frozen=True)
class _InOwnLabel:
    """After a box or its mask, or within a label of any words."""

    rules: _Rules
    tokens: ObjectTokens
    may_have_mask: bool

    @property
    def allowed(self) -> Allowed:
        return self.tokens.after_box if self.may_have_mask else self.tokens.in_label

    def after(self, token: int) -> State:
        if token in self.rules.end.eos_ids:
            return self.rules.end
        if self.rules.is_location(token):
            return _InBox(self.rules, ()).after(token)
        if self.rules.is_code(token):
            return _InMask(self.rules, CODES_PER_MASK).after(token)
        if self.tokens.separator[token]:
            return _AfterSeparator(self.rules, self.tokens)
        still = self.may_have_mask and bool(self.tokens.blank[token])
        return _InOwnLabel(self.rules, self.tokens, may_have_mask=still)


@dataclass(frozen=True)
class _AfterSeparator:
    """After the separator of an object: another one, or the end after all."""

    rules: _Rules
    tokens: ObjectTokens

    @property
    def allowed(self) -> Allowed:
        return self.tokens.after_separator

    def after(self, token: int) -> State:
        if token in self.rules.end.eos_ids:
            return self.rules.end
        return _InBox(self.rules, ()).after(token) if self.rules.is_location(token) else self


def _label_tokens(
    labels: tuple[str, ...] | None, encoder: PromptEncoder
) -> TokenTrie | ObjectTokens:
    if labels is None:
        return encoder.once(ObjectTokens.of)
    texts = [f" {label}" for label in labels]
    last = (ended_answers(encoder, answer_tokens(encoder, text)) for text in texts)
    more = (answer_tokens(encoder, text + SEPARATOR) for text in texts)
    return TokenTrie.of(chain(*last, more))
