"""The one place that writes to a terminal: answers and other results, messages, progress.

Knows two streams, and that what they get may be a stranger's text. Knows nothing of commands.
"""

from __future__ import annotations

import contextlib
import errno
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TextIO

from paligemma_edge.runtime.errors import OutputError
from paligemma_edge.runtime.printable import one_line, printable, short_line
from paligemma_edge.runtime.system import streams

PREFIX = "paligemma-edge: "
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Console:
    """Standard output for answers, standard error for everything else.

    Control characters are escaped: names of files and answers may hold any of them. A quiet one has
    no notes and no progress, and still the errors. A result that cannot be written is an
    OutputError, a BrokenPipeError where its reader has gone; a message that cannot is lost.
    """

    out: TextIO
    err: TextIO
    quiet: bool = False

    @classmethod
    def standard(cls, *, quiet: bool = False) -> Console:
        """The streams of this process; a process may have been started without."""
        return cls(sys.stdout or streams.Nowhere(), sys.stderr or streams.Nowhere(), quiet)

    def answer(self, *lines: str) -> None:
        """Write lines of an answer, in full."""
        self.exact("".join(f"{one_line(line)}\n" for line in lines))

    def write(self, text: str) -> None:
        """Write a piece of an answer at once, with the answer's own line breaks."""
        self.exact(printable(text))

    def print(self, *lines: str) -> None:
        """Write lines about files and models, each cut where it is very long."""
        self.exact("".join(f"{short_line(line)}\n" for line in lines))

    def exact(self, text: str) -> None:
        """Write what is harmless as it is: JSON in ASCII, a table or a script of ours."""
        with self._as_output_errors():
            self.out.write(text)
            self.out.flush()

    def flush(self) -> None:
        """Write what others have printed."""
        with self._as_output_errors():
            self.out.flush()

    def summary(self, *lines: str) -> None:
        """Write lines about work that is done; nothing is lost where they cannot be written."""
        with self.optional():
            self.print(*lines)

    @contextlib.contextmanager
    def optional(self) -> Iterator[None]:
        """Let what is written here get lost: the result is elsewhere."""
        try:
            yield
        except (OutputError, BrokenPipeError):
            streams.discard(self.out)

    def message(self, text: str) -> None:
        """Write a line about what went wrong, with the name of the command in front."""
        with contextlib.suppress(OSError):
            self.err.write(f"{PREFIX}{short_line(text)}\n")
            self.err.flush()

    def details(self, text: str) -> None:
        """Write lines below a message, indented, so that none is taken for a message."""
        with contextlib.suppress(OSError):
            self.err.write("".join(f"  {short_line(line)}\n" for line in text.splitlines()))
            self.err.flush()

    def record(self, text: str) -> None:
        """Write a line of a log for machines in full; JSON in ASCII stays as it is."""
        with contextlib.suppress(OSError):
            self.err.write(f"{one_line(text)}\n")
            self.err.flush()

    def note(self, text: str) -> None:
        """Write a line about the run that is no error."""
        if not self.quiet:
            self.message(text)

    @contextlib.contextmanager
    def _as_output_errors(self) -> Iterator[None]:
        try:
            yield
        except (OutputError, BrokenPipeError):
            raise
        except OSError as error:
            todo = "free some space" if error.errno in _FULL else "check where it leads"
            reason = "it is closed" if error.errno == errno.EBADF else error.strerror
            raise OutputError(
                error.errno, f"cannot write standard output: {reason}; {todo}"
            ) from None
