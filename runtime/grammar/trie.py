"""Sequences of tokens as a trie: each shared prefix is kept once.

Knows token ids. Knows nothing of their text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class TokenTrie:
    """A trie whose nodes are numbered; node 0 is the root, before every first token."""

    next: tuple[Mapping[int, int], ...]  # of each node: the child for each token
    tokens: tuple[NDArray[np.intp], ...]  # of each node: the tokens that follow, ascending
    ends: tuple[int, ...]  # of each sequence: the node after its last token

    @classmethod
    def of(cls, sequences: Iterable[tuple[int, ...]]) -> Self:
        """The trie of sequences, none of which is a prefix of another."""
        children: list[dict[int, int]] = [{}]
        ends = []
        for sequence in sequences:
            node = 0
            for token in sequence:
                child = children[node].setdefault(token, len(children))
                if child == len(children):
                    children.append({})
                node = child
            ends.append(node)
        tokens = tuple(np.array(sorted(following), np.intp) for following in children)
        return cls(tuple(children), tokens, tuple(ends))

    def is_end(self, node: int) -> bool:
        """Whether a sequence ends at a node."""
        return not self.next[node]
