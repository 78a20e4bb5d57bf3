"""How much a command says on standard error: `--verbose`, `--quiet`, and Python's logging."""

from __future__ import annotations

import argparse
import contextlib
import logging
import time
from collections.abc import Iterator

from paligemma_edge.runtime.system.console import Console

_LOGGER = logging.getLogger("paligemma_edge")


def add_verbosity(parser: argparse.ArgumentParser) -> None:
    """Add `--verbose` and `--quiet`, which exclude each other."""
    level = parser.add_mutually_exclusive_group()
    level.add_argument(
        "-v", "--verbose", action="store_true", help="say more, for a report of an error"
    )
    level.add_argument(
        "-q", "--quiet", action="store_true", help="say nothing but answers and errors"
    )


def level_of(options: argparse.Namespace) -> int:
    """The level of logging that the options ask for."""
    given = vars(options)
    if given.get("quiet"):
        return logging.WARNING
    return logging.DEBUG if given.get("verbose") else logging.INFO


@contextlib.contextmanager
def logging_to_stderr(level: int) -> Iterator[None]:
    """Write what the package logs to standard error, as the command's own messages."""
    before = _LOGGER.level, _LOGGER.propagate
    _LOGGER.setLevel(level)
    _LOGGER.propagate = False
    try:
        with handled_by(_Handler()):
            yield
    finally:
        _LOGGER.setLevel(before[0])
        _LOGGER.propagate = before[1]


@contextlib.contextmanager
def handled_by(handler: logging.Handler) -> Iterator[None]:
    """Let this handler alone have what the package logs."""
    before = _LOGGER.handlers[:]
    _LOGGER.handlers[:] = [handler]
    try:
        yield
    finally:
        _LOGGER.handlers[:] = before


class _Handler(logging.Handler):
    """Writes to what is standard error by then: bars of progress stand in for it."""

    _traceback = logging.Formatter()

    def emit(self, record: logging.LogRecord) -> None:
        console = Console.standard()
        console.message(self.line(record))
        if record.exc_info:
            console.details(self._traceback.formatException(record.exc_info))

    def line(self, record: logging.LogRecord) -> str:
        """What is written of a record, besides a traceback."""
        return record.getMessage()


class TimedHandler(_Handler):
    """Lines of what goes on for long, each with its time, in UTC."""

    def line(self, record: logging.LogRecord) -> str:
        """The time and the message."""
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(record.created))
        return f"{when} {record.getMessage()}"


class RecordHandler(logging.Handler):
    """Lines for machines, as a formatter makes them of records."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        Console.standard().record(self.format(record))


def is_quiet() -> bool:
    """Whether notes and progress are unwanted."""
    return not _LOGGER.isEnabledFor(logging.INFO)


def is_verbose() -> bool:
    """Whether more is wanted than usual."""
    return _LOGGER.isEnabledFor(logging.DEBUG)


def log_traceback() -> None:
    """With `--verbose`, where an error came from."""
    _LOGGER.debug("this is where the error below came from", exc_info=True)
