"""Signals that ask a command to stop: Ctrl-C, SIGTERM, and that of a terminal that was closed.

Before the work begins and after it ends they end the process at once: `runtime/cli/start.py`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_AGAIN = 0.02  # seconds
_LOCK_WAITS = 10
_IMPORTS = "<frozen importlib"  # how Python names the code that imports


@dataclass
class Interruption:
    """Which signal came while a command worked, below the frame that does the work."""

    top: FrameType
    number: int = signal.SIGINT
    came: bool = False
    waits: int = 0  # for locks, so far

    @property
    def exit_code(self) -> int:
        """What a shell gives for a process that this signal ended."""
        return 128 + self.number

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Raise KeyboardInterrupt, or try again soon."""
        if number != signal.SIGALRM:
            self.number, self.came, self.waits = number, True, 0
        if self._must_wait(frame):
            signal.setitimer(signal.ITIMER_REAL, _AGAIN)
        else:
            raise KeyboardInterrupt

    def _must_wait(self, frame: FrameType | None) -> bool:
        """Whether Python would print or swallow what is raised here, or half import a library.

        A lock is left half taken; whoever waits long for one waits for something else.
        """
        self.waits += 1
        if frame is not None and frame.f_code.co_filename == threading.__file__:
            return self.waits < _LOCK_WAITS
        while frame is not None and frame is not self.top:
            code = frame.f_code
            if code.co_filename.startswith(_IMPORTS) or code.co_name == "__del__":
                return True
            frame = frame.f_back
        return False


@contextlib.contextmanager
def interruptible(top: FrameType) -> Iterator[Interruption]:
    """Raise KeyboardInterrupt for these signals, those left out that are ignored already.

    `top` is the caller's frame. Python lets the main thread alone handle signals.
    """
    interruption = Interruption(top)
    with _handled(interruption, signal.SIGALRM):
        try:
            yield interruption
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)


@contextlib.contextmanager
def ending_on_signals(stop: Callable[[], bool]) -> Iterator[None]:
    """Call `stop` for the first of these signals; the next one ends the process at once.

    So does the first where `stop` returns False: there is nothing to wait for.
    """
    asked = False

    def hear(number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        if asked or not stop():
            try:
                os.write(2, b"paligemma-edge: interrupted\n")
            finally:
                os._exit(128 + number)
        asked = True

    with _handled(hear):
        yield


@contextlib.contextmanager
def _handled(handler: Callable[[int, FrameType | None], None], *also: int) -> Iterator[None]:
    """Let a handler hear the signals of `STOPPING` that are not ignored, and others."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = [number for number in STOPPING if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in (*also, *heard)}
    try:
        yield
    finally:
        for number, handler_before in before.items():
            signal.signal(number, handler_before)
