"""How likely the model held a token, over all that may be spoken.

Knows one row. Knows nothing of grammars: a token's likelihood is the model's own, whatever an
answer was allowed to be.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from paligemma_edge.runtime.errors import DeviceError

_BLOCK = 1 << 15  # logits that stay in the processor's cache from one operation to the next


def log_sum_exp(logits: NDArray[np.float32]) -> float:
    """What a logit lies above its log-probability; DeviceError where logits are no numbers."""
    peak = require_number(float(logits.max()))  # NaN, if there is one
    blocks = range(0, len(logits), _BLOCK)
    total = sum(float(np.exp(logits[start : start + _BLOCK] - peak).sum()) for start in blocks)
    return peak + math.log(total)


def require_number(value: float) -> float:
    """The value; DeviceError where it is infinite or no number."""
    if not math.isfinite(value):
        raise DeviceError(
            f"the variant produced {value} where logits were wanted; "
            "use a variant that computes in float32 or bfloat16"
        )
    return value
