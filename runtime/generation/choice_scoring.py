"""How likely the model holds each of a closed set of answers.

Answers are read as a trie of tokens, so what two of them share at their start is read once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from paligemma_edge.runtime.engine.logits import Row
from paligemma_edge.runtime.grammar.choices import Choices
from paligemma_edge.runtime.grammar.trie import TokenTrie
from paligemma_edge.runtime.text.tokenizer import PromptEncoder

# Depth after the prompt and a token → the logits that follow.
Read: TypeAlias = Callable[[int, int], Row]


def score_choices(
    choices: Choices, encoder: PromptEncoder, first: Row, read: Read
) -> dict[str, float]:
    """Log-probability of each answer, its end included, in the order of the answers.

    The logits `first` follow the prompt. `read(depth, token)` puts a token `depth` places after
    the prompt, over what was there and after it, and returns the logits that follow, valid until
    it is called again. It is called once for each beginning that answers share.
    """
    trie = choices.trie(encoder)
    totals = _totals(trie, first, read)
    ends = np.array([totals[end] for end in trie.ends]).reshape(len(choices.answers), -1)
    scores: list[float] = np.logaddexp.reduce(ends, axis=1).tolist()  # whichever token ends it
    return dict(zip(choices.answers, scores, strict=True))


def _totals(trie: TokenTrie, first: Row, read: Read) -> dict[int, float]:
    """The sum of log-probabilities up to each place, deepest first so that a cache can follow."""
    totals = {0: 0.0}
    waiting = [(0, 0, -1)]  # place, its depth, the token that leads there
    while waiting:
        place, depth, token = waiting.pop()
        if trie.is_end(place):
            continue
        row = read(depth - 1, token) if depth else first
        following = trie.tokens[place]
        scores = row.log_probs(following).tolist()
        for follower, score in zip(following.tolist(), scores, strict=True):
            child = trie.next[place][follower]
            totals[child] = totals[place] + score
            waiting.append((child, depth + 1, follower))
    return totals
