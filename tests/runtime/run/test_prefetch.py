from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from paligemma_edge.runtime.errors import ImageError
from paligemma_edge.runtime.run.prefetch import ahead

WAIT = 60  # seconds after which a test gives up; none takes them


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "ahead"]


def ended() -> bool:
    """Whether no thread is left, once those that were told to end have done so."""
    for thread in workers():
        thread.join(WAIT)
    return not workers()


@pytest.mark.parametrize("depth", [0, 1, 3, 100])
def test_results_come_in_order_with_their_items(depth: int) -> None:
    assert list(ahead(range(20), lambda n: n * n, depth)) == [(n, n * n) for n in range(20)]
    assert ended()


def test_the_work_is_done_in_a_thread_before_it_is_needed() -> None:
    begun = threading.Semaphore(0)
    names: list[str] = []

    def work(number: int) -> int:
        names.append(threading.current_thread().name)
        begun.release()
        return number

    outcomes = ahead(range(100), work, 3)
    assert next(outcomes) == (0, 0)
    for _ in range(4):  # the one that was asked for, and three
        assert begun.acquire(timeout=WAIT)
    outcomes.close()
    assert ended()
    assert set(names) == {"ahead"}
    assert len(names) <= 5


def test_no_more_than_the_depth_is_done_early() -> None:
    asked: list[int] = []

    def items() -> Iterator[int]:
        for number in range(100):
            asked.append(number)
            yield number

    outcomes = ahead(items(), lambda n: n, 2)
    next(outcomes)
    next(outcomes)
    outcomes.close()
    assert ended()
    assert len(asked) <= 4


@pytest.mark.parametrize("depth", [0, 2])
def test_a_broken_image_stands_in_its_place(depth: int) -> None:
    def work(number: int) -> int:
        if number % 2:
            raise ImageError(f"{number} is broken")
        return number

    outcomes = [outcome for _, outcome in ahead(range(4), work, depth)]
    assert [str(outcome) for outcome in outcomes] == ["0", "1 is broken", "2", "3 is broken"]
    assert isinstance(outcomes[1], ImageError)
    assert ended()


@pytest.mark.parametrize("depth", [0, 2])
def test_any_other_error_is_raised_in_its_place(depth: int) -> None:
    outcomes = ahead([1, 0, 2], lambda n: 1 // n, depth)
    assert next(outcomes) == (1, 1)
    with pytest.raises(ZeroDivisionError):
        next(outcomes)
    assert ended()


@pytest.mark.parametrize("depth", [0, 2])
def test_an_error_of_the_items_is_raised(depth: int) -> None:
    def items() -> Iterator[int]:
        yield 1
        raise KeyError("gone")

    outcomes = ahead(items(), lambda n: n, depth)
    assert next(outcomes) == (1, 1)
    with pytest.raises(KeyError):
        next(outcomes)
    assert ended()


def test_the_items_are_closed_when_nobody_reads_any_more() -> None:
    closed = threading.Event()

    def items() -> Iterator[int]:
        try:
            yield from range(100)
        finally:
            closed.set()

    outcomes = ahead(items(), lambda n: n, 1)
    next(outcomes)
    outcomes.close()
    assert closed.wait(WAIT)


def test_closing_does_not_wait_for_an_item_that_never_comes() -> None:
    waits, comes = threading.Event(), threading.Event()

    def items() -> Iterator[int]:
        yield 1
        waits.set()
        comes.wait(WAIT)

    outcomes = ahead(items(), lambda n: n, 2)
    assert next(outcomes) == (1, 1)
    assert waits.wait(WAIT)
    outcomes.close()  # would hang here
    comes.set()
    assert ended()
