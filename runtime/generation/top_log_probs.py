"""The most likely tokens in a place, with their log-probabilities."""

from __future__ import annotations

import numpy as np

from paligemma_edge.runtime.engine.logits import Row
from paligemma_edge.runtime.results.generation import TokenLogProb


def top_log_probs(row: Row, count: int) -> tuple[TokenLogProb, ...]:
    """The `count` most likely answer tokens, the likeliest first, of equal ones the lower id."""
    short = row.shortlist
    if short is not None and short.holds_top(count):
        tokens, logits = short.tokens, short.logits
    else:
        logits = row.answer_logits
        tokens = np.arange(len(logits))
    if count < len(logits):
        likely = logits >= np.partition(logits, -count)[-count]
        tokens, logits = tokens[likely], logits[likely]
    first = np.lexsort((tokens, -logits))[:count]
    return tuple(
        TokenLogProb(int(token), float(score))
        for token, score in zip(tokens[first], row.log_probs(tokens[first]), strict=True)
    )
