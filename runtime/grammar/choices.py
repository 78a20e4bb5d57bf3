"""A closed set of answers: one of them is generated, or all of them are scored.

Answers are a trie of tokens, so a prefix that two of them share is computed once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from paligemma_edge.runtime.errors import OptionError
from paligemma_edge.runtime.grammar.base import (
    Allowed,
    EndState,
    State,
    answer_tokens,
    ended_answers,
)
from paligemma_edge.runtime.grammar.trie import TokenTrie
from paligemma_edge.runtime.text.tokenizer import PromptEncoder

MAX_CHOICES = 10_000


@dataclass(frozen=True)
class Choices:
    """A grammar whose answers are those of a set.

    Args:
        answers: at least one and at most MAX_CHOICES texts; blanks around them are removed.

    Raises:
        OptionError: there are no answers or too many, or one is empty or given twice.

    Example:
        >>> model.generate("street.jpg", "is it raining?", grammar=Choices(("yes", "no"))).text
        'no'
    """

    answers: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "answers", _checked(self.answers))

    @classmethod
    def of(cls, answers: Iterable[str]) -> Self:
        """Choices of any iterable except a single text, which would be split into letters."""
        listed = isinstance(answers, Iterable) and not isinstance(answers, str)
        return cls(tuple(answers) if listed else answers)  # type: ignore[arg-type]

    def start(self, encoder: PromptEncoder) -> State:
        """The state before an answer; PromptError where the tokenizer cannot write one."""
        return _ChoiceState(self.trie(encoder), 0, EndState(encoder.config.eos_ids))

    def trie(self, encoder: PromptEncoder) -> TokenTrie:
        """The tokens of each answer, in order, with each of its ends; PromptError as above."""
        return TokenTrie.of(
            ended
            for answer in self.answers
            for ended in ended_answers(encoder, answer_tokens(encoder, answer))
        )

    def longest(self, encoder: PromptEncoder) -> int:
        """Number of tokens of the longest answer, its end included."""
        return 1 + max(len(answer_tokens(encoder, answer)) for answer in self.answers)


@dataclass(frozen=True)
class _ChoiceState:
    """Within one of the answers: a node of their trie."""

    trie: TokenTrie
    node: int
    end: EndState

    @property
    def allowed(self) -> Allowed:
        return self.trie.tokens[self.node]

    def after(self, token: int) -> State:
        child = self.trie.next[self.node][token]
        return self.end if self.trie.is_end(child) else _ChoiceState(self.trie, child, self.end)


def _checked(answers: object) -> tuple[str, ...]:
    wanted = "wanted answers such as ('yes', 'no')"
    if not isinstance(answers, tuple | list) or not answers:
        raise OptionError(f"the choices are {answers!r}, {wanted}")
    if len(answers) > MAX_CHOICES:
        raise OptionError(f"there are {len(answers)} choices, wanted at most {MAX_CHOICES}")
    distinct: dict[str, None] = {}
    for answer in answers:
        if not isinstance(answer, str) or not answer.strip():
            raise OptionError(f"a choice is {answer!r}, {wanted}")
        if answer.strip() in distinct:
            raise OptionError(f"the choice {answer.strip()!r} is there twice; give each once")
        distinct[answer.strip()] = None
    return tuple(distinct)
