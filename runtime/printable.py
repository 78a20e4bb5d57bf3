"""Text for a terminal, whoever wrote it."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with control characters escaped: names and answers may hold any of them."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)
