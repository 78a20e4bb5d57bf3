"""How sure the model is: one rule for words and choices, and one for the objects of an answer.

Knows log-probabilities. Knows nothing of where they come from.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

_LEAST = -sys.float_info.max  # log-probability of what is impossible, where infinity is not allowed


@dataclass(frozen=True)
class ObjectLogProbs:
    """Log-probabilities that the model gave to what wrote one object.

    Args:
        separator: of each token since the object before; empty for the first object.
        box: that *any* box begins here, wherever it lies: of all 1,024 `<loc>` together.
        corners: of each of the box's `<loc>`.
        codes: of each of the mask's `<seg>`; empty without a mask.
        label: of each token of the label; empty without one.
    """

    separator: tuple[float, ...]
    box: float
    corners: tuple[float, ...]
    codes: tuple[float, ...]
    label: tuple[float, ...]


def object_log_prob(parts: ObjectLogProbs) -> float:
    """Logarithm of a detection's confidence: that an object begins here, and has this label.

    Where it lies and which mask it has are left out: of many places that are as good as each other
    each one is unlikely, however sure the model is of the object.
    """
    return sum(parts.separator) + parts.box + sum(parts.label)


def confidence_of(log_prob: float) -> float:
    """exp(log_prob), 0..1; a device's rounding above 0 counts as 0."""
    return math.exp(min(log_prob, 0.0))


def mean(log_probs: Sequence[float]) -> float:
    """Mean log-probability of tokens: that of words, however many they are."""
    return sum(log_probs) / len(log_probs)


def finite(log_prob: float) -> float:
    """The log-probability, or the most negative float for minus infinity, which JSON lacks."""
    return max(float(log_prob), _LEAST)
