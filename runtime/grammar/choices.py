"""A closed set of answers: one of them is said, or all of them are scored.

Answers are read as a trie of tokens, so what two of them share at their start is read once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from paligemma_edge.runtime.errors import OptionError
from paligemma_edge.runtime.grammar.base import Allowed, EndState, State, answer_tokens
from paligemma_edge.runtime.grammar.trie import TokenTrie
from paligemma_edge.runtime.text.tokenizer import PromptEncoder

MAX_CHOICES = 10_000


@dataclass(frozen=True)
class Choices:
    """A grammar of answers that are one of a set, blanks around them left out.

    OptionError where there is none, more than MAX_CHOICES, an empty one or one twice.
    """

    answers: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "answers", _checked(self.answers))

    @classmethod
    def of(cls, answers: Iterable[str]) -> Self:
        """Of any iterable but a text, whose letters nobody means."""
        listed = isinstance(answers, Iterable) and not isinstance(answers, str)
        return cls(tuple(answers) if listed else answers)  # type: ignore[arg-type]

    def start(self, encoder: PromptEncoder) -> State:
        """The place before an answer; PromptError where the tokenizer cannot write one."""
        return _Place(self.trie(encoder), 0, EndState(encoder.config.eos_id))

    def trie(self, encoder: PromptEncoder) -> TokenTrie:
        """The tokens of the answers, in order, each with the end; PromptError as above."""
        eos_id = encoder.config.eos_id
        return TokenTrie.of((*answer_tokens(encoder, answer), eos_id) for answer in self.answers)

    def longest(self, encoder: PromptEncoder) -> int:
        """Tokens of the longest answer, its end included."""
        return 1 + max(len(answer_tokens(encoder, answer)) for answer in self.answers)


@dataclass(frozen=True)
class _Place:
    trie: TokenTrie
    place: int
    ended: EndState

    @property
    def allowed(self) -> Allowed:
        return self.trie.tokens[self.place]

    def after(self, token: int) -> State:
        place = self.trie.next[self.place][token]
        return self.ended if self.trie.is_end(place) else _Place(self.trie, place, self.ended)


def _checked(answers: object) -> tuple[str, ...]:
    wanted = "wanted answers such as ('yes', 'no')"
    if not isinstance(answers, tuple | list) or not answers:
        raise OptionError(f"the choices are {answers!r}, {wanted}")
    if len(answers) > MAX_CHOICES:
        raise OptionError(f"there are {len(answers)} choices, wanted at most {MAX_CHOICES}")
    found: dict[str, None] = {}
    for answer in answers:
        if not isinstance(answer, str) or not answer.strip():
            raise OptionError(f"a choice is {answer!r}, {wanted}")
        if answer.strip() in found:
            raise OptionError(f"the choice {answer.strip()!r} is there twice; give each once")
        found[answer.strip()] = None
    return tuple(found)
