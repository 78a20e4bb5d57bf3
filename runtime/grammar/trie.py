"""Sequences of tokens, each beginning that they share kept once.

Knows numbers. Knows nothing of what the sequences say.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class TokenTrie:
    """Places are numbered, 0 is in front of every first token."""

    next: tuple[Mapping[int, int], ...]  # of each place: the place behind each token
    tokens: tuple[NDArray[np.intp], ...]  # of each place: what may follow, ascending
    ends: tuple[int, ...]  # of each sequence: the place behind its last token

    @classmethod
    def of(cls, sequences: Iterable[tuple[int, ...]]) -> Self:
        """The trie of sequences of which none begins another."""
        places: list[dict[int, int]] = [{}]
        ends = []
        for sequence in sequences:
            place = 0
            for token in sequence:
                following = places[place].setdefault(token, len(places))
                if following == len(places):
                    places.append({})
                place = following
            ends.append(place)
        tokens = tuple(np.array(sorted(place), np.intp) for place in places)
        return cls(tuple(places), tokens, tuple(ends))

    def is_end(self, place: int) -> bool:
        """Whether a sequence is complete there."""
        return not self.next[place]
