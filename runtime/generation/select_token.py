"""The next token: a sampling policy and a grammar over the logits of the decoder.

Asks for as little of a row as the choice needs: on a GPU every logit that is looked at on the
host has to be copied there.
"""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import NDArray

from paligemma_edge.runtime.engine.logits import Row
from paligemma_edge.runtime.generation.sampling import Greedy, Sampling, TopSampling
from paligemma_edge.runtime.grammar.base import Allowed


def select_token(sampling: Sampling, row: Row, allowed: Allowed | None, position: int) -> int:
    """The token that a policy picks where all that is not allowed has the logit minus infinity.

    `allowed` None allows every token that an answer may hold; `position` is the token's place in
    the text. DeviceError where the logits that it picks from are NaN or infinite.
    """
    if allowed is None:
        return row.best if isinstance(sampling, Greedy) else _drawn(sampling, row, position)
    if allowed.dtype == np.bool_:
        return _chosen_of_flags(sampling, row, cast(NDArray[np.bool_], allowed), position)
    tokens = cast(NDArray[np.intp], allowed)
    return int(tokens[sampling.choose(row.at(tokens), position)])


def _chosen_of_flags(
    sampling: Sampling, row: Row, allowed: NDArray[np.bool_], position: int
) -> int:
    if isinstance(sampling, Greedy) and (token := _most_likely(row, allowed)) is not None:
        return token
    tokens = np.flatnonzero(allowed)
    return int(tokens[sampling.choose(row.answer_logits[tokens], position)])


def _drawn(sampling: Sampling, row: Row, position: int) -> int:
    """A free choice, from the shortlist where a policy looks at no more."""
    if isinstance(sampling, TopSampling) and sampling.top_k:
        short = row.shortlist
        if short is not None and short.holds_top(sampling.top_k):
            return int(short.tokens[sampling.choose(short.logits, position)])
    return sampling.choose(row.answer_logits, position)


def _most_likely(row: Row, allowed: NDArray[np.bool_]) -> int | None:
    """The most likely token of those flagged, where it is among the first; None: look at all.

    To find the largest of all logits is many times quicker than to pick out the allowed.
    """
    if allowed[best := row.best]:
        return best
    short = row.shortlist
    if short is None:
        return None
    logits = np.where(allowed[short.tokens], short.logits, -np.inf)
    place = int(logits.argmax())
    # Of tokens as unlikely as the last one, some may have been left off.
    return int(short.tokens[place]) if logits[place] > short.least else None
