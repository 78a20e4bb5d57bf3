"""Seconds of repeated runs, and how they are reported.

Knows numbers alone, so that whatever is measured beside a bundle is summed up alike.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from paligemma_edge.runtime.timing import Stage, Stopwatch

READING: tuple[Stage, ...] = ("preprocess", "vision", "projector", "prefill")
FIRST_TOKEN = "first_token"  # noqa: S105 - the sum of the stages above


@dataclass(frozen=True)
class Timings:
    """Seconds that each of several runs took."""

    each: tuple[float, ...]

    @property
    def median(self) -> float:
        """The run in the middle."""
        return statistics.median(self.each)

    def to_json(self) -> dict[str, Any]:
        """Median, minimum, maximum and every run, in seconds, to the microsecond."""
        return {
            "median": round(self.median, 6),
            "minimum": round(min(self.each), 6),
            "maximum": round(max(self.each), 6),
            "each": [round(seconds, 6) for seconds in self.each],
        }


@dataclass(frozen=True)
class StepTimings:
    """Seconds of one step in each of several runs, with `batch_size` sequences side by side."""

    batch_size: int
    seconds: Timings

    @property
    def tokens_per_second(self) -> float:
        """Tokens of all sequences in a second."""
        return self.batch_size / self.seconds.median

    def to_json(self) -> dict[str, Any]:
        """Batch size, seconds of a step and tokens of all sequences in a second."""
        return {
            "batch_size": self.batch_size,
            "seconds": self.seconds.to_json(),
            "tokens_per_second": round(self.tokens_per_second, 3),
        }


def until_first_token(watches: Sequence[Stopwatch]) -> dict[str, Timings]:
    """The stages from an image's file to the first token, then their sum run by run."""
    stages: dict[str, Timings] = {
        stage: Timings(tuple(watch.seconds[stage] for watch in watches)) for stage in READING
    }
    total = Timings(tuple(sum(watch.seconds[stage] for stage in READING) for watch in watches))
    return {**stages, FIRST_TOKEN: total}
