"""Text in columns, and tables of rich as text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from paligemma_edge.runtime.printable import short_line

if TYPE_CHECKING:
    from rich.table import Table


def aligned(rows: Iterable[Sequence[str]], numbers: Sequence[int] = ()) -> Iterator[str]:
    """Lines with each column as wide as its longest text; those in `numbers` end in one place.

    A text is shortened and its control characters escaped, for it may be that of a stranger's file.
    """
    texts = [[short_line(text) for text in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    for row in texts:
        cells = (
            text.rjust(width) if place in numbers else text.ljust(width)
            for place, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()


def rendered(table: Table) -> str:
    """A table of rich, which the extra `export` brings, as it looks on this terminal."""
    from rich.console import Console as Terminal

    terminal = Terminal()
    with terminal.capture() as captured:
        terminal.print(table)
    return captured.get()
