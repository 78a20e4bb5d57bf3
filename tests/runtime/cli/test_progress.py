"""Progress where no terminal is: lines, and few of them."""

from __future__ import annotations

import io
import logging

import pytest

from paligemma_edge.runtime.cli.progress import StageLines, shown_progress
from paligemma_edge.runtime.cli.verbosity import logging_to_stderr
from paligemma_edge.runtime.system.console import Console


def test_a_stage_has_a_line_as_it_begins_and_one_each_ten_seconds() -> None:
    stream, now = io.StringIO(), [0.0]
    lines = StageLines(Console(io.StringIO(), stream), clock=lambda: now[0])
    for second in range(25):
        now[0] = float(second)
        lines("writing", second, 100)
    lines("hashing", 0, 1)
    lines("writing", 100, 100)  # of the next variant
    lines("calibrating \x1b[2J\n", 0, 1)
    assert stream.getvalue().splitlines() == [
        "paligemma-edge: writing",
        "paligemma-edge: writing, 10% done",
        "paligemma-edge: writing, 20% done",
        "paligemma-edge: hashing",
        "paligemma-edge: writing",
        "paligemma-edge: calibrating \\x1b[2J\\n",
    ]


@pytest.mark.parametrize(
    ("level", "shown"), [(logging.INFO, "paligemma-edge: reading\n"), (logging.WARNING, "")]
)
def test_a_quiet_command_shows_none(
    level: int, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with logging_to_stderr(level), shown_progress() as progress:
        progress("reading", 0, 2)
    assert capsys.readouterr() == ("", shown)
