"""Time that one answer takes, stage by stage."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

Stage = Literal["preprocess", "vision", "projector", "prefill", "steps"]


@dataclass(frozen=True)
class Stopwatch:
    """Seconds spent in each stage so far, in the order in which the stages began."""

    seconds: dict[Stage, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def measure(self, stage: Stage) -> Iterator[None]:
        """Add the duration of the block."""
        start = time.perf_counter()
        yield
        self.add(stage, time.perf_counter() - start)

    def add(self, stage: Stage, seconds: float) -> None:
        """Add a duration that was measured elsewhere."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
