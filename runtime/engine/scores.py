"""Logits as numbers: what a log-probability is measured from, and what is no number.

Knows arrays on the host.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from paligemma_edge.runtime.errors import NonFiniteLogitsError

_BLOCK = 1 << 15  # logits that stay in the CPU's cache from one operation to the next


def log_sum_exp(logits: NDArray[np.float32]) -> float:
    """A logit minus its log-probability; NonFiniteLogitsError where logits are NaN or infinite."""
    peak = require_number(float(logits.max()))  # NaN, if there is one
    blocks = range(0, len(logits), _BLOCK)
    total = sum(float(np.exp(logits[start : start + _BLOCK] - peak).sum()) for start in blocks)
    return peak + math.log(total)


def require_number(value: float) -> float:
    """The value; NonFiniteLogitsError where it is NaN or infinite."""
    if not math.isfinite(value):
        raise NonFiniteLogitsError(
            f"the variant produced {value} where logits were wanted; "
            "use a variant that computes in float32 or bfloat16"
        )
    return value
