"""Text in columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from paligemma_edge.runtime.printable import short_line


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
