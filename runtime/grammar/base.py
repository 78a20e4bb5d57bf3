"""What a grammar is: at each point of an answer it says which tokens are allowed next.

Knows states and token ids. Knows no concrete grammar; each has its own module.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from paligemma_edge.runtime.errors import PromptError
from paligemma_edge.runtime.text.tokenizer import PromptEncoder

# Token ids, ascending; or one flag for each answer token: [image_id].
Allowed: TypeAlias = NDArray[np.intp] | NDArray[np.bool_]


class State(Protocol):
    """How far an answer has come, as a value: it never changes, `after` gives the next state."""

    @property
    def allowed(self) -> Allowed | None:
        """The tokens that are allowed next, at least one; None for every answer token."""
        ...

    def after(self, token: int) -> State:
        """The state after a token, which is one of the allowed ones."""
        ...


class Grammar(Protocol):
    """Which answers are allowed; one object serves any number of answers."""

    def start(self, encoder: PromptEncoder) -> State:
        """The state before an answer; PromptError or OptionError where none is possible."""
        ...


@dataclass(frozen=True)
class EndState:
    """The state after the end of an answer, where only tokens that end it are allowed."""

    eos_ids: tuple[int, ...]  # ascending

    @property
    def allowed(self) -> Allowed:
        """The tokens that end an answer."""
        return np.array(self.eos_ids)

    def after(self, token: int) -> EndState:
        """The same state."""
        assert token in self.eos_ids
        return self


def ended_answers(encoder: PromptEncoder, tokens: tuple[int, ...]) -> list[tuple[int, ...]]:
    """An answer's tokens with each of the tokens that may end it."""
    return [(*tokens, eos_id) for eos_id in encoder.config.eos_ids]


def answer_tokens(encoder: PromptEncoder, text: str) -> tuple[int, ...]:
    """Tokens of a text as an answer; PromptError where they would decode to another text."""
    ids = encoder.continuation(text)
    if (decoded := encoder.decode(ids)) != text:
        raise PromptError(
            f"{text.strip()!r} cannot be an answer, since the tokenizer turns it into "
            f"{decoded.strip()!r}; write it as the tokenizer does"
        )
    return ids
