"""Names from a file as one short line of a message, however many and whatever their characters."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from paligemma_edge.runtime.printable import short_line

_MOST = 10
_LONGEST = 120


def join_names(names: Sequence[str]) -> str:
    """Join the first ten names, then count the rest."""
    more = len(names) - _MOST
    listed = ", ".join(short_line(name, _LONGEST) for name in names[:_MOST])
    return f"{listed} and {more} more" if more > 0 else listed


def join_tensor_names(names: Iterable[str]) -> str:
    """Join names on one line, sorted, with the layers of equal names as ranges."""
    groups: dict[str, list[int]] = {}
    for name in names:
        parts = re.split(r"(?<=\blayers\.)(\d+)(?=\.)", name, maxsplit=1)
        layer = int(parts[1]) if len(parts) > 1 else -1
        groups.setdefault("{}".join((parts[0], *parts[2:])), []).append(layer)
    return ", ".join(name.replace("{}", _ranges(groups[name])) for name in sorted(groups))


def _ranges(layers: list[int]) -> str:
    layers = sorted(layers)
    starts = [n for n in layers if n - 1 not in layers]
    ends = [n for n in layers if n + 1 not in layers]
    spans = [str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True)]
    return spans[0] if spans == [str(layers[0])] else "{" + ",".join(spans) + "}"
