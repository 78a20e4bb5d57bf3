"""The figures of a fidelity report, each from the answers of the two variants.

Knows answers and rows of logits. Knows no model and no bundle.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from paligemma_edge.quantize.fidelity.answers import EvalAnswer
from paligemma_edge.quantize.fidelity.overlap import Overlap, mean_overlap
from paligemma_edge.runtime.bundle.fidelity import Spread

Pairs: TypeAlias = Sequence[
    tuple[EvalAnswer, EvalAnswer]
]  # the reference's answer and the variant's


def divergence(reference: NDArray[np.float32], variant: NDArray[np.float32]) -> float:
    """KL(reference || variant) in nats of the next tokens that two rows of logits predict."""
    p, q = _log_softmax(reference), _log_softmax(variant)
    return max(0.0, float(np.exp(p) @ (p - q)))  # rounding may take it below


def logit_error(reference: NDArray[np.float32], variant: NDArray[np.float32]) -> float:
    """max |a - b| / max |b| of two rows of logits, b the reference's."""
    difference = float(np.abs(variant.astype(np.float64) - reference).max())
    largest = float(np.abs(reference).max())
    return difference / max(largest, float(np.finfo(np.float32).tiny))


def spread(rows: Sequence[NDArray[np.float64]]) -> Spread:
    """Mean, 99th percentile and largest of all values."""
    values = np.concatenate(rows)
    mean, p99 = float(values.mean()), float(np.percentile(values, 99))
    return Spread(mean=mean, p99=p99, largest=float(values.max()))


def free_agreement(pairs: Pairs) -> float:
    """Share of places with the same token, up to the longer answer of each pair."""
    places = [p for a, b in pairs for p in itertools.zip_longest(a.tokens, b.tokens)]
    return sum(bool(a == b) for a, b in places) / len(places)


def same_answers(pairs: Pairs) -> float:
    """Share of answers that are the reference's, token by token."""
    return sum(a.tokens == b.tokens for a, b in pairs) / len(pairs)


def mean_iou(pairs: Pairs, overlap: Overlap, *, masked: bool = False) -> float | None:
    """Mean over the answers of the reference that have objects, or masks; None if none has."""
    objects = ((a.objects(masked=masked), b.objects(masked=masked)) for a, b in pairs)
    scores = [mean_overlap(wanted, actual, overlap) for wanted, actual in objects if wanted]
    return float(np.mean(scores)) if scores else None


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max()
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return result
