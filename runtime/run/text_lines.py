"""The lines of a text that somebody else writes: none of them is waited for without an end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TextIO

LONGEST_LINE = 1 << 20  # characters


def text_lines(file: TextIO) -> Iterator[str]:
    """Each line as it comes, with its line break; ValueError for one that is too long to be one."""
    number = 0
    while line := file.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:
            raise ValueError(f"line {number} has more than {LONGEST_LINE:,} characters")
        yield line
