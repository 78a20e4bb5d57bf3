"""How sure the model is: one rule for words, objects and choices.

Knows log-probabilities. Knows nothing of where they come from.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

_LEAST = -sys.float_info.max  # log-probability of what is impossible, where infinity is not allowed


def confidence_of(log_prob: float) -> float:
    """exp(log_prob), 0..1; a device's rounding above 0 counts as 0."""
    return math.exp(min(log_prob, 0.0))


def mean(log_probs: Sequence[float]) -> float:
    """Mean log-probability of tokens: the confidence of words, however many they are."""
    return sum(log_probs) / len(log_probs)


def finite(log_prob: float) -> float:
    """The log-probability, or the most negative float for minus infinity, which JSON lacks."""
    return max(float(log_prob), _LEAST)
