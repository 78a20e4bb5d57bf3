"""How likely the model held a token: log-probabilities of one row of logits.

Knows one row. Knows nothing of grammars: a token's likelihood is the model's own, whatever an
answer was allowed to be.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from paligemma_edge.runtime.errors import DeviceError

_BLOCK = 1 << 15  # logits that stay in the processor's cache from one operation to the next


def log_prob(logits: NDArray[np.float32], token: int) -> float:
    """Log-probability of a token among logits [spoken]; DeviceError where they are no numbers."""
    return float(logits[token]) - _log_sum_exp(logits)


def log_probs(logits: NDArray[np.float32], tokens: NDArray[np.intp]) -> NDArray[np.float64]:
    """Log-probabilities [tokens] of some tokens among logits [spoken]; DeviceError as above."""
    return logits[tokens].astype(np.float64) - _log_sum_exp(logits)


def _log_sum_exp(logits: NDArray[np.float32]) -> float:
    peak = logits.max()  # NaN, if there is one
    if not math.isfinite(peak):
        raise DeviceError(
            f"the variant produced {peak} where logits were wanted; "
            "use a variant that computes in float32 or bfloat16"
        )
    blocks = range(0, len(logits), _BLOCK)
    total = sum(float(np.exp(logits[start : start + _BLOCK] - peak).sum()) for start in blocks)
    return float(peak) + math.log(total)
