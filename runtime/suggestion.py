"""What was probably meant by a name that is not known."""

from __future__ import annotations

from collections.abc import Iterable


def suggestion(given: object, known: Iterable[str]) -> str:
    """The end of a message, "; did you mean cpu-int4?", or nothing where no name is near."""
    import difflib

    near = difflib.get_close_matches(given, list(known), 1) if isinstance(given, str) else []
    return f"; did you mean {near[0]}?" if near else ""
