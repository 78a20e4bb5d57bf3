"""Standard input, output and error of this process, whatever it was started with.

Knows descriptors 0, 1 and 2. Knows nothing of what is read or written there.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import select
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

# As gnulib's stdopen: what reads a missing input or writes a missing output gets an error.
_MISSING = ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_RDONLY))


def open_streams() -> None:
    """Give this process its three streams. Called before it opens any other file.

    A stream that was closed by whoever started the process leads nowhere, so that no file gets its
    number. One that another program made non-blocking is waited for. Standard error never fails.
    """
    for descriptor, mode in _MISSING:
        _occupy(descriptor, mode)
    if sys.stdin is None or not os.get_blocking(0):
        sys.stdin = _text(io.BufferedReader(Waiting(0, "rb", closefd=False)), sys.stdin)
    if sys.stdout is None or not os.get_blocking(1):
        sys.stdout = _text(io.BufferedWriter(Waiting(1, "wb", closefd=False)), sys.stdout)
    sys.stderr = _text(io.BufferedWriter(_Unfailing(2, "wb", closefd=False)), sys.stderr)
    sys.stderr.reconfigure(line_buffering=True)


def standard_input() -> TextIO:
    """That of this process; a process without one has one that is closed."""
    if sys.stdin is not None:
        return sys.stdin
    missing = Nowhere()
    missing.close()
    return missing


def can_write(descriptor: int) -> bool:
    """Whether a descriptor is open for writing; what stands in for a missing output is not."""
    try:
        return fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
    except OSError:
        return False


def is_missing(stream: TextIO) -> bool:
    """Whether the process was started without this output, as after `>&-`."""
    try:
        return not can_write(stream.fileno())
    except (OSError, ValueError):  # not a stream of the system
        return isinstance(stream, Nowhere)


def discard(stream: TextIO) -> None:
    """Let what is still to be written to a stream vanish, so that nothing fails again."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(null, stream.fileno())
        finally:
            os.close(null)


class Nowhere(io.StringIO):
    """A stream for a process that has none."""

    def write(self, text: str, /) -> int:
        """Forget a text."""
        return len(text)


class Waiting(io.FileIO):
    """A descriptor that is waited for where it is not ready, since another made it non-blocking."""

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """As of `io.FileIO`."""
        while (count := super().readinto(buffer)) is None:
            select.select([self], [], [])
        return count

    def write(self, data: ReadableBuffer, /) -> int:
        """As of `io.FileIO`."""
        while (count := super().write(data)) is None:
            select.select([], [self], [])
        return count

    def read(self, size: int | None = -1, /) -> bytes:
        """As of `io.FileIO`, by `readinto`."""
        return io.RawIOBase.read(self, -1 if size is None else size) or b""

    def readall(self) -> bytes:
        """As of `io.FileIO`, by `readinto`."""
        return io.RawIOBase.readall(self) or b""


class _Unfailing(Waiting):
    """Drops what cannot be written: there is nobody to tell, and the work goes on."""

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def _occupy(descriptor: int, mode: int) -> None:
    """Open nothing as this descriptor where it is closed; the lower ones are open."""
    try:
        os.fstat(descriptor)
    except OSError:
        os.set_inheritable(os.open(os.devnull, mode), True)


def _text(binary: io.BufferedReader | io.BufferedWriter, before: TextIO | None) -> io.TextIOWrapper:
    """Text over bytes, encoded as Python would have, for names and answers of any characters."""
    errors = "surrogateescape" if isinstance(binary, io.BufferedReader) else "backslashreplace"
    encoding = "utf-8" if before is None else before.encoding
    return io.TextIOWrapper(binary, encoding, errors, line_buffering=binary.isatty())
