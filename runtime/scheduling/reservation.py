"""Places in the queue, by count and bytes, taken before anything costly is done for a request."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Self

from paligemma_edge.runtime.scheduling.errors import QueueFullError
from paligemma_edge.runtime.size_text import size_text


@dataclass(frozen=True, kw_only=True)
class QueueLimits:
    """How much may wait.

    Args:
        jobs: that wait for a slot, or whose images are being read for it.
        size: bytes of their images, as they were sent and as the model sees them.
        jobs_of_client: of one client among them.
    """

    jobs: int = 64
    size: int = 256 << 20
    jobs_of_client: int = 64


@dataclass(eq=False)
class Reservation:
    """A place in the queue, until it is closed."""

    _queue: Reservations
    _client: str
    _size: int
    _open: bool = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the place to others; a second time it does nothing."""
        self._queue._give_back(self)


@dataclass(frozen=True, eq=False)
class Reservations:
    """The places that are taken; threads may share it."""

    limits: QueueLimits
    _taken: Counter[str] = field(default_factory=Counter)  # by client
    _bytes: list[int] = field(default_factory=lambda: [0])
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def taken(self) -> int:
        """How many there are."""
        return self._taken.total()

    def take(self, client: str, size: int) -> Reservation:
        """A place for so many bytes; QueueFullError where there is none.

        A job that is larger than all that may wait is taken while nothing else does.
        """
        with self._lock:
            self._check(client, size)
            self._taken[client] += 1
            self._bytes[0] += size
            return Reservation(self, client, size)

    def _check(self, client: str, size: int) -> None:
        limits, count, held = self.limits, self._taken.total(), self._bytes[0]
        if count >= limits.jobs:
            raise QueueFullError(
                f"{count} requests are waiting, which is as many as may; try again later",
                of_client=False,
            )
        if count and held + size > limits.size:
            raise QueueFullError(
                f"images of {size_text(held)} are waiting, and at most {size_text(limits.size)} "
                "may; try again later",
                of_client=False,
            )
        if (mine := self._taken[client]) >= limits.jobs_of_client:
            raise QueueFullError(
                f"{mine} requests with this key are waiting, which is as many as may; "
                "try again later",
                of_client=True,
            )

    def _give_back(self, reservation: Reservation) -> None:
        with self._lock:
            if not reservation._open:
                return
            reservation._open = False
            self._taken[reservation._client] -= 1
            if not self._taken[reservation._client]:
                del self._taken[reservation._client]
            self._bytes[0] -= reservation._size
