"""Where a run writes answers, messages and progress."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TextIO


@dataclass(frozen=True)
class Console:
    """Standard output for answers, standard error for everything else."""

    out: TextIO
    err: TextIO

    @classmethod
    def standard(cls) -> Console:
        """The streams of this process."""
        return cls(sys.stdout, sys.stderr)

    def write(self, text: str) -> None:
        """Write a piece of an answer at once."""
        self.out.write(text)
        self.out.flush()

    def print(self, line: str) -> None:
        """Write a line of an answer."""
        self.write(f"{line}\n")

    def message(self, text: str) -> None:
        """Write a line about the run, with the name of the command in front."""
        self.err.write(f"paligemma-edge: {text}\n")
        self.err.flush()
