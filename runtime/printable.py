"""Texts of files and of models, as a terminal can be given them: nothing in them commands it."""

from __future__ import annotations

_LONGEST = 600  # characters; the maker's note, the longest text of a manifest, has 500


def printable(text: str) -> str:
    """The text with control characters escaped, and with its line breaks."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def short_line(text: str) -> str:
    """The text in one line, with control characters escaped, cut where it is very long."""
    line = printable(text[: _LONGEST + 1]).replace("\n", "\\n")
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 3]}..."
