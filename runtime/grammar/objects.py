"""The answers of `detect` and `segment`: boxes, codes of masks and labels, and nothing else.

An object is `<locY0><locX0><locY1><locX1>`, sixteen `<seg>` where masks are requested, and
` label`. Objects are joined by ` ; `, and there may be none. No box is empty. A requested label has
the tokens that training would have given it. Where any label is allowed, it may also be missing:
models that were fine-tuned to find the one thing that a prompt describes answer without labels.
`parse_answer` reads every such answer as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from paligemma_edge.runtime.contract import CODES_PER_MASK, LOC_COUNT, SEG_COUNT
from paligemma_edge.runtime.grammar.base import Allowed, EndState, State, answer_tokens
from paligemma_edge.runtime.grammar.free_labels import SEPARATOR, FreeLabels
from paligemma_edge.runtime.grammar.trie import TokenTrie
from paligemma_edge.runtime.text.labels import checked_labels
from paligemma_edge.runtime.text.tokenizer import PromptEncoder


@dataclass(frozen=True)
class ObjectGrammar:
    """Objects with one of the labels; where `labels` is None, with any label or none.

    Duplicate labels and extra blanks are removed. PromptError where `labels` is empty, or a label
    is empty or holds ";", "<" or ">".
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
    labels: TokenTrie | FreeLabels

    @classmethod
    def of(cls, grammar: ObjectGrammar, encoder: PromptEncoder) -> Self:
        config = encoder.config
        return cls(
            locations=config.first_loc_id + np.arange(LOC_COUNT),
            codes=config.first_seg_id + np.arange(SEG_COUNT),
            end=EndState(config.eos_id),
            masks=grammar.masks,
            labels=_label_tokens(grammar.labels, encoder),
        )

    def after_box(self) -> State:
        return _InMask(self, CODES_PER_MASK) if self.masks else self.after_codes()

    def after_codes(self) -> State:
        if isinstance(self.labels, TokenTrie):
            return _InLabel(self, self.labels, 0)
        return _InFreeLabel(self, self.labels, self.labels.after_box)


@dataclass(frozen=True)
class _Start:
    """Before the first object, where the answer may end: there are no objects."""

    rules: _Rules

    @property
    def allowed(self) -> Allowed:
        corners = self.rules.locations[:-1]
        return np.sort(np.append(corners, self.rules.end.eos_id))

    def after(self, token: int) -> State:
        if token == self.rules.end.eos_id:
            return self.rules.end
        return _InBox(self.rules, ()).after(token)


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
        return end if token == end.eos_id else _InBox(self.rules, ())


@dataclass(frozen=True)
class _InFreeLabel:
    """Within a label of any words: flags of what may follow."""

    rules: _Rules
    labels: FreeLabels
    allowed: NDArray[np.bool_]

    def after(self, token: int) -> State:
        if token == self.rules.end.eos_id:
            return self.rules.end
        if (rest := self.labels.separators.get(token)) is not None:
            return _after_separator(self.rules, rest)
        return _InFreeLabel(self.rules, self.labels, self.labels.after(token))


@dataclass(frozen=True)
class _InSeparator:
    """Within a separator: its remaining tokens."""

    rules: _Rules
    rest: tuple[int, ...]

    @property
    def allowed(self) -> Allowed:
        return np.array(self.rest[:1])

    def after(self, token: int) -> State:
        assert token == self.rest[0]
        return _after_separator(self.rules, self.rest[1:])


def _after_separator(rules: _Rules, rest: tuple[int, ...]) -> State:
    return _InSeparator(rules, rest) if rest else _InBox(rules, ())


def _label_tokens(labels: tuple[str, ...] | None, encoder: PromptEncoder) -> TokenTrie | FreeLabels:
    if labels is None:
        return encoder.once(FreeLabels.of)
    eos_id = encoder.config.eos_id
    texts = [f" {label}" for label in labels]
    last = ((*answer_tokens(encoder, text), eos_id) for text in texts)
    return TokenTrie.of([*last, *(answer_tokens(encoder, text + SEPARATOR) for text in texts)])
