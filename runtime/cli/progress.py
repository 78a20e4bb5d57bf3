"""Shows the progress of long work: bars on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TextIO

from paligemma_edge.runtime.cli.verbosity import is_quiet
from paligemma_edge.runtime.progress import Progress, no_progress

_REPEATED = 10.0  # seconds between two lines of one stage


class StageLines:
    """A line as each stage begins, and one of how far it is each ten seconds: for logs."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream, clock
        self._stage, self._written = "", 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        """As `Progress`."""
        now, is_new = self._clock(), stage != self._stage
        if is_new or now - self._written >= _REPEATED:
            self._stage, self._written = stage, now
            share = f", {done / total:.0%} done" if total > 1 and not is_new else ""
            self._stream.write(f"paligemma-edge: {stage}{share}\n")
            self._stream.flush()


@contextmanager
def shown_progress() -> Iterator[Progress]:
    """What long work reports to: bars on a terminal, lines elsewhere, nothing with `--quiet`."""
    if is_quiet():
        yield no_progress
    elif sys.stderr.isatty() and find_spec("rich") is not None:
        with _bars() as progress:
            yield progress
    else:
        yield StageLines(sys.stderr)


@contextmanager
def _bars() -> Iterator[Progress]:
    """A bar for each stage, the current one shown, of rich, which the extra `export` brings."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn
    from rich.progress import TimeRemainingColumn as TimeLeft

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeLeft())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                for task in tasks.values():
                    bars.update(task, visible=False)
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done)

        yield report
