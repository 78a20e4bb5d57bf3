"""How far a long run has come: one line, redrawn on a terminal, now and then elsewhere.

Knows counts and a clock. Knows nothing of the images that it counts.
"""

from __future__ import annotations

import shutil
import time
from collections import deque
from collections.abc import Callable
from typing import TextIO

_REDRAWN = 0.1  # seconds between two lines on a terminal
_REPEATED = 10.0  # and elsewhere, such as in a log
_QUICK = 2.0  # shorter runs log nothing
_WINDOW = 64  # images that the rate is taken over
_CLEAR = "\r\x1b[K"


class RunProgress:
    """Writes to `stream` how many of `total` images are done, how fast, and how much time is left.

    `total` is None where it is not known. `resumed` of them were done by an earlier run.
    """

    def __init__(
        self,
        stream: TextIO,
        total: int | None,
        *,
        resumed: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream, self._total, self._clock = stream, total, clock
        self._resumed, self._done, self._failed = resumed, resumed, 0
        self._redraws = stream.isatty()
        self._start = self._written = clock()
        self._recent = deque([self._start], _WINDOW)
        self._shown = False

    def advance(self, *, failed: bool = False) -> None:
        """One more image is done."""
        self._done += 1
        self._failed += failed
        now = self._clock()
        self._recent.append(now)
        if now - self._written >= (_REDRAWN if self._redraws else _REPEATED):
            self._write(now)

    def clear(self) -> None:
        """Take the line off the terminal, so that something else can be printed there."""
        if self._shown:
            self._stream.write(_CLEAR)
            self._stream.flush()
            self._shown = False

    def close(self) -> None:
        """Write the last line, except to the log of a quick run."""
        now = self._clock()
        if self._redraws or now - self._start >= _QUICK:
            self._write(now)
            if self._redraws:
                self._stream.write("\n")
                self._stream.flush()
        self._shown = False

    def _write(self, now: float) -> None:
        self._written, line = now, self._line(now)
        if self._redraws:
            columns = shutil.get_terminal_size().columns
            self._stream.write(_CLEAR + line[: columns - 1])
            self._stream.flush()
            self._shown = True
        else:
            self._stream.write(f"{line}\n")
            self._stream.flush()

    def _line(self, now: float) -> str:
        parts = [f"{self._done:,}" + ("" if self._total is None else f"/{self._total:,}")]
        took = now - self._recent[0]
        if len(self._recent) > 1 and took > 0:
            rate = (len(self._recent) - 1) / took
            parts.append(f"{rate:,.0f} images/s" if rate >= 100 else f"{rate:.3g} images/s")
            if self._total is not None and self._total > self._done:
                parts.append(f"{_duration((self._total - self._done) / rate)} left")
        if self._failed:
            parts.append(f"{self._failed:,} failed")
        if self._resumed:
            parts.append(f"resumed at {self._resumed:,}")
        return ", ".join(parts)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
