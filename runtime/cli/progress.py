"""Shows the progress of long work: bars on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from paligemma_edge.runtime.cli.verbosity import is_quiet
from paligemma_edge.runtime.printable import short_line
from paligemma_edge.runtime.progress import Progress, no_progress
from paligemma_edge.runtime.system.console import Console

_REPEATED = 10.0  # seconds between two lines of one stage


class StageLines:
    """A line as each stage begins, and one of how far it is each ten seconds: for logs."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = console, clock
        self._stage, self._written = "", 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        """As `Progress`."""
        now, is_new = self._clock(), stage != self._stage
        if is_new or now - self._written >= _REPEATED:
            self._stage, self._written = stage, now
            share = f", {done / total:.0%} done" if total > 1 and not is_new else ""
            self._console.message(f"{stage}{share}")


@contextmanager
def shown_progress() -> Iterator[Progress]:
    """What long work reports to: bars on a terminal, lines elsewhere, nothing with `--quiet`."""
    console = Console.standard()
    if is_quiet():
        yield no_progress
    elif console.err.isatty() and find_spec("rich") is not None:
        with _bars() as progress:
            yield progress
    else:
        yield StageLines(console)


@contextmanager
def _bars() -> Iterator[Progress]:
    """A bar for each stage, the current one shown, of rich, which the extra `export` brings."""
    from rich.console import Console as Terminal
    from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn
    from rich.progress import TimeRemainingColumn as TimeLeft

    name = TextColumn("{task.description}", markup=False)
    columns = (name, BarColumn(), TaskProgressColumn(), TimeLeft())
    with Progress(*columns, console=Terminal(stderr=True), transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                for task in tasks.values():
                    bars.update(task, visible=False)
                tasks[stage] = bars.add_task(short_line(stage), total=total)
            bars.update(tasks[stage], completed=done)

        yield report
