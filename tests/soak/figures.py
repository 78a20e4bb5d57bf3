"""What a server says of itself while it is soaked, and what must hold of that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

ALLOWED = (200, 429, 503, 504)
MOST_GROWTH = 1_000_000  # bytes of resident memory for each 1,000 requests
MOST_FILES = 4  # more open files than before the clients came
_WARM = 0.3  # share of the requests after which caches and pools are full
_ENOUGH = 3000  # requests, for fewer than which a slope is noise


@dataclass(frozen=True)
class Sample:
    """The server at one moment."""

    requests: int  # that clients had made
    resident: int  # bytes
    files: int
    running: int
    waiting: int

    @classmethod
    def of(cls, requests: int, metrics: str) -> Sample:
        """By the text of /metrics."""
        values = {
            sample.name: int(sample.value)
            for family in text_string_to_metric_families(metrics)
            for sample in family.samples
            if not sample.labels
        }
        return cls(
            requests,
            values["process_resident_memory_bytes"],
            values["process_open_fds"],
            values["paligemma_edge_num_requests_running"],
            values["paligemma_edge_num_requests_waiting"],
        )


@dataclass
class Figures:
    """All that was seen."""

    slots: int
    queue: int
    samples: list[Sample] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)  # of requests that were right
    left: int = 0  # requests whose client did not wait for the answer
    errors: list[str] = field(default_factory=list)  # of the server's log, and of clients

    @property
    def requests(self) -> int:
        """How many were made."""
        return self.statuses.total() + self.left

    def growth(self) -> float | None:
        """Bytes of memory for each 1,000 requests, once all is warm; None for too few of them."""
        warm = [one for one in self.samples if one.requests >= _WARM * self.requests]
        return slope(warm) if self.requests >= _ENOUGH and len(warm) > 2 else None

    def problems(self, before: Sample, after: Sample) -> Iterator[str]:
        """What does not hold."""
        yield from self.errors[:20]
        for status in sorted(set(self.statuses) - set(ALLOWED)):
            yield f"{self.statuses[status]} answers of status {status}"
        if not self.statuses[200]:
            yield "no question was answered"
        if after.running or after.waiting:
            yield f"afterwards {after.running} requests run and {after.waiting} wait"
        if after.files > before.files + MOST_FILES:
            yield f"afterwards {after.files} files are open, before {before.files}"
        if max((one.running for one in self.samples), default=0) > self.slots:
            yield f"more than {self.slots} requests ran at a time"
        if max((one.waiting for one in self.samples), default=0) > self.queue:
            yield f"more than {self.queue} requests waited"
        if (growth := self.growth()) is not None and growth > MOST_GROWTH:
            yield f"memory grows by {growth / 1e6:.2f} MB for each 1,000 requests"

    def lines(self, before: Sample, after: Sample) -> Iterator[str]:
        """A summary."""
        ended = ", ".join(f"{count} x {status}" for status, count in self.statuses.most_common())
        yield f"{self.requests} requests: {ended}, {self.left} left before their answer"
        peak = max(one.resident for one in (*self.samples, after))
        sizes = [f"{size / 1e6:.1f}" for size in (before.resident, peak, after.resident)]
        yield f"resident MB before, at most, after: {', '.join(sizes)}"
        yield f"open files before, after: {before.files}, {after.files}"
        growth = self.growth()
        shown = "too few requests to say" if growth is None else f"{growth / 1e6:+.3f} MB"
        yield f"memory for each 1,000 requests: {shown}"


def slope(samples: Sequence[Sample]) -> float:
    """Bytes for each 1,000 requests, of the straight line that fits best."""
    requests = np.array([one.requests for one in samples], np.float64)
    resident = np.array([one.resident for one in samples], np.float64)
    return float(np.polyfit(requests / 1000, resident, 1)[0])
