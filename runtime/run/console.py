"""Where a run writes answers, messages and progress."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TextIO

from paligemma_edge.runtime.printable import printable


@dataclass(frozen=True)
class Console:
    """Standard output for answers, standard error for everything else.

    Control characters are escaped: names of files and answers may hold any of them. A quiet one has
    no notes and no progress, and still the errors.
    """

    out: TextIO
    err: TextIO
    quiet: bool = False

    @classmethod
    def standard(cls, *, quiet: bool = False) -> Console:
        """The streams of this process."""
        return cls(sys.stdout, sys.stderr, quiet)

    def write(self, text: str) -> None:
        """Write a piece of an answer at once."""
        self.out.write(printable(text))
        self.out.flush()

    def print(self, line: str) -> None:
        """Write a line of an answer."""
        self.write(f"{line}\n")

    def message(self, text: str) -> None:
        """Write a line about what went wrong, with the name of the command in front."""
        self.err.write(f"paligemma-edge: {printable(text)}\n")
        self.err.flush()

    def note(self, text: str) -> None:
        """Write a line about the run that is no error."""
        if not self.quiet:
            self.message(text)
