"""Work that is done in a thread before its result is needed.

Knows order and depth. Knows nothing of images but that one of them may be broken.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Generic, TypeAlias, TypeVar

from paligemma_edge.runtime.errors import ImageError

T = TypeVar("T")
R = TypeVar("R")
Outcome: TypeAlias = R | ImageError


def ahead(
    items: Iterable[T], work: Callable[[T], R], depth: int
) -> Generator[tuple[T, Outcome[R]], None, None]:
    """Do the work of each item in a thread, at most `depth` of them early; yield in order.

    The items are read in that thread too. An ImageError of the work stands in the place of its
    result; any other error is raised where its result would have come. With a depth of 0 there
    is no thread: each item is read when it is asked for. The thread ends with the items, or soon
    after this iterator is closed; nothing waits for it while it waits for an item.
    """
    if not depth:
        for item in items:
            yield item, _outcome(work, item)
        return
    worker = _Worker(items, work, threading.Semaphore(depth))
    threading.Thread(target=worker.run, name="ahead", daemon=True).start()
    try:
        while (entry := worker.done.get()) is not None:
            if isinstance(entry, _Failed):
                raise entry.error
            worker.room.release()
            yield entry
    finally:
        worker.stopped = True
        worker.room.release()


@dataclass(frozen=True)
class _Failed:
    error: BaseException


@dataclass
class _Worker(Generic[T, R]):
    """What the thread does, and what it shares with the reader."""

    items: Iterable[T]
    work: Callable[[T], R]
    room: threading.Semaphore
    done: SimpleQueue[tuple[T, Outcome[R]] | _Failed | None] = field(default_factory=SimpleQueue)
    stopped: bool = False

    def run(self) -> None:
        try:
            self._run()
        except BaseException as error:  # raised again by the reader
            self.done.put(_Failed(error))
        else:
            self.done.put(None)

    def _run(self) -> None:
        items = iter(self.items)
        try:
            while self._has_room():
                try:
                    item = next(items)
                except StopIteration:
                    return
                self.done.put((item, _outcome(self.work, item)))
        finally:
            if close := getattr(items, "close", None):
                close()

    def _has_room(self) -> bool:
        self.room.acquire()
        return not self.stopped


def _outcome(work: Callable[[T], R], item: T) -> Outcome[R]:
    try:
        return work(item)
    except ImageError as error:
        return error
