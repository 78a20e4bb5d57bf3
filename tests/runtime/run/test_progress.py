from __future__ import annotations

import io

import pytest

from paligemma_edge.runtime.run.progress import RunProgress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_log_gets_a_line_every_ten_seconds_and_at_the_end() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = RunProgress(stream, 1000, clock=clock)
    for number in range(25):
        clock.now += 1
        progress.advance(failed=number == 3)
    progress.close()
    first, second, last = stream.getvalue().splitlines()
    assert first == "10/1,000, 1 images/s, 16 min 30 s left, 1 failed"
    assert second.startswith("20/1,000, ")
    assert last.startswith("25/1,000, ")


def test_what_is_quick_says_nothing_in_a_log() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = RunProgress(stream, 3, clock=clock)
    for _ in range(3):
        clock.now += 0.5
        progress.advance()
    progress.close()
    assert stream.getvalue() == ""


def test_a_terminal_is_redrawn_ten_times_a_second_at_most() -> None:
    stream, clock = Terminal(), Clock()
    progress = RunProgress(stream, 5000, clock=clock)
    for _ in range(1000):
        clock.now += 0.001
        progress.advance()
    assert 9 <= stream.getvalue().count("\r\x1b[K") <= 10
    assert "\n" not in stream.getvalue()
    progress.close()
    assert stream.getvalue().endswith("1,000/5,000, 1,000 images/s, 4 s left\n")


def test_a_line_never_wraps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    stream, clock = Terminal(), Clock()
    progress = RunProgress(stream, 100_000, clock=clock)
    clock.now += 1
    progress.advance()
    assert len(stream.getvalue().removeprefix("\r\x1b[K")) < 20


def test_a_note_stays_and_the_line_makes_room() -> None:
    stream, clock = Terminal(), Clock()
    progress = RunProgress(stream, 10, clock=clock)
    clock.now += 1
    progress.advance()
    progress.clear()
    assert stream.getvalue().endswith("\r\x1b[K")
    shown = stream.getvalue()
    progress.clear()  # nothing is shown now
    assert stream.getvalue() == shown


def test_the_rate_is_that_of_late() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = RunProgress(stream, 10_000, clock=clock)
    for _ in range(50):
        clock.now += 10
        progress.advance()
    for _ in range(400):
        clock.now += 0.1
        progress.advance()
    progress.close()
    assert "450/10,000, 10 images/s, 15 min 55 s left" in stream.getvalue()


def test_what_an_earlier_run_did_is_reported_and_is_not_in_the_rate() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = RunProgress(stream, 1000, resumed=412, clock=clock)
    for _ in range(4):
        clock.now += 1
        progress.advance()
    progress.close()
    line = "416/1,000, 1 images/s, 9 min 44 s left, resumed at 412\n"
    assert stream.getvalue() == line


@pytest.mark.parametrize(
    ("left", "words"),
    [(59, "59 s"), (61, "1 min 1 s"), (3 * 3600 + 120, "3 h 2 min"), (90_000, "1 d 1 h")],
)
def test_durations_are_read_at_a_glance(left: int, words: str) -> None:
    stream, clock = io.StringIO(), Clock()
    progress = RunProgress(stream, left + 2, clock=clock)
    for _ in range(2):
        clock.now += 1
        progress.advance()
    progress.close()
    assert f"{words} left" in stream.getvalue()


def test_without_a_total_there_is_no_time_left() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = RunProgress(stream, None, clock=clock)
    for _ in range(2):
        clock.now += 1
        progress.advance()
    progress.close()
    assert stream.getvalue() == "2, 1 images/s\n"
