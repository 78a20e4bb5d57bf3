"""Names from a file, in a message: any number of them, with any characters, on one short line."""

from __future__ import annotations

from collections.abc import Sequence

_MOST = 10
_LONGEST = 120


def listed(names: Sequence[str]) -> str:
    """Join the first ten names, and say how many more there are."""
    more = len(names) - _MOST
    return ", ".join(map(_shown, names[:_MOST])) + (f" and {more} more" if more > 0 else "")


def _shown(name: str) -> str:
    name = name if len(name) <= _LONGEST else f"{name[:_LONGEST]}..."
    return name if name.isprintable() else ascii(name)
