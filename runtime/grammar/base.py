"""Which tokens an answer may take next: what a grammar is.

Knows states and token ids. Knows nothing of any one grammar; each has a file of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from paligemma_edge.runtime.errors import PromptError
from paligemma_edge.runtime.text.tokenizer import PromptEncoder

# Ids, ascending; or one flag for each of the tokens that may be spoken: [image_id].
Allowed: TypeAlias = NDArray[np.intp] | NDArray[np.bool_]


class State(Protocol):
    """A place in an answer, as a value: it never changes, `after` gives the next one."""

    @property
    def allowed(self) -> Allowed:
        """The tokens that may come next, at least one."""
        ...

    def after(self, token: int) -> State:
        """The place behind a token, which is one of the allowed ones."""
        ...


class Grammar(Protocol):
    """What an answer may be; one object serves any number of answers."""

    def start(self, encoder: PromptEncoder) -> State:
        """The place before the first token; PromptError or OptionError where there is none."""
        ...


@dataclass(frozen=True)
class EndState:
    """The place behind the end of an answer, where only the end may follow."""

    eos_id: int

    @property
    def allowed(self) -> Allowed:
        """The end alone."""
        return np.array([self.eos_id])

    def after(self, token: int) -> EndState:
        """The same place."""
        assert token == self.eos_id
        return self


def answer_tokens(encoder: PromptEncoder, text: str) -> tuple[int, ...]:
    """The tokens of a text that an answer may be; PromptError where they would read otherwise."""
    ids = encoder.continuation(text)
    if (read := encoder.decode(ids)) != text:
        raise PromptError(
            f"{text.strip()!r} cannot be an answer, for the tokenizer makes {read.strip()!r} of "
            "it; write it as the tokenizer does"
        )
    return ids
