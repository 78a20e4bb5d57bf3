"""Logits in, token out: greedy, or drawn from the most likely tokens.

Knows one row of logits and its position. Knows nothing of the batch, of text or of a grammar:
a token that is forbidden has the logit minus infinity.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from paligemma_edge.runtime.engine.scores import require_number
from paligemma_edge.runtime.errors import OptionError
from paligemma_edge.runtime.validation import plain


class Sampling(Protocol):
    """A policy that picks the next token."""

    def choose(self, logits: NDArray[np.float32], position: int) -> int:
        """Pick a token from logits [vocab]; `position` is the place of that token in the text."""
        ...


@dataclass(frozen=True)
class Greedy:
    """The most likely token; of equal ones the first."""

    def choose(self, logits: NDArray[np.float32], position: int) -> int:  # noqa: ARG002
        """Pick the largest of logits [vocab], DeviceError where they are not numbers."""
        return _largest(logits)


@dataclass(frozen=True)
class TopSampling:
    """A token drawn from the `top_k` most likely ones that make up `top_p` of the probability.

    The rules are those of transformers' temperature, top-k and top-p warpers, in that order:
    ties at the k-th place are all kept, `top_k=0` keeps every token, and at least one token
    stays. The random number depends on `seed` and `position` alone, so an answer is the same
    in any batch. OptionError when a value is out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            object.__setattr__(self, name, plain(getattr(self, name)))
        _require(
            _is(self.temperature, Real) and 0 < self.temperature < math.inf,
            f"temperature is {self.temperature!r}, wanted a number above 0; "
            "for the most likely token use greedy sampling",
        )
        _require(
            _is(self.top_k, Integral) and self.top_k >= 0,
            f"top_k is {self.top_k!r}, wanted a whole number of tokens, or 0 for no limit",
        )
        _require(
            _is(self.top_p, Real) and 0 <= self.top_p <= 1,
            f"top_p is {self.top_p!r}, wanted a number from 0 to 1",
        )
        _require(
            _is(self.seed, Integral) and 0 <= self.seed < 2**64,
            f"seed is {self.seed!r}, wanted a whole number from 0 to 2**64 - 1",
        )

    def choose(self, logits: NDArray[np.float32], position: int) -> int:
        """Draw from logits [vocab], DeviceError where they are not numbers."""
        tokens, weights = self.candidates(logits)
        steps = np.cumsum(weights)
        drawn = np.searchsorted(steps, self._uniform(position) * steps[-1], side="right")
        return int(tokens[min(int(drawn), len(tokens) - 1)])

    def candidates(
        self, logits: NDArray[np.float32]
    ) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """Tokens that may be drawn, ascending, and their weights, largest 1."""
        peak = logits[_largest(logits)]
        tokens = _top_k(logits, self.top_k)
        with np.errstate(over="ignore"):  # a tiny temperature: minus infinity is meant
            scaled = (logits[tokens].astype(np.float64) - peak) / self.temperature
        weights = np.exp(scaled)
        kept = _top_p(weights, self.top_p)
        return tokens[kept], weights[kept]

    def _uniform(self, position: int) -> float:
        return np.random.Generator(np.random.Philox(key=self.seed, counter=position)).random()


def _largest(logits: NDArray[np.float32]) -> int:
    token = int(logits.argmax())  # the first NaN, if there is one
    require_number(float(logits[token]))
    return token


def _top_k(logits: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """Tokens that are no smaller than the `count`-th largest, ascending; all of them for 0."""
    if not 0 < count < len(logits):
        return np.arange(len(logits))
    return np.flatnonzero(logits >= np.partition(logits, -count)[-count])


def _top_p(weights: NDArray[np.float64], share: float) -> NDArray[np.intp]:
    """Indices, ascending, of the fewest largest weights that reach `share` of their sum."""
    if share >= 1:
        return np.arange(len(weights))
    total = weights.sum()
    # All weights below this bound together stay under 1 - share: no need to sort them.
    likely = np.flatnonzero(weights > 0.5 * (1 - share) * total / len(weights))
    order = likely[np.argsort(-weights[likely], kind="stable")]
    before = np.cumsum(weights[order]) - weights[order]
    return np.sort(order[: max(1, int(np.count_nonzero(before < share * total)))])


def _is(value: object, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _require(valid: bool, message: str) -> None:
    if not valid:
        raise OptionError(message)
