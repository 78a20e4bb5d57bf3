"""Where the boxes of one folder stand: in rows by what they import, with few crossings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise, permutations, product

Arrow = tuple[str, str]  # from the room that imports to the one imported
BEND = 0.25  # width of the gap that an arrow takes in a row that it passes, a box being 1
GAP = 0.14
SWEEPS = 12


@dataclass(frozen=True)
class Layout:
    """Boxes by row (0 is the lowest) and place (0 is the middle), and the ways of the arrows."""

    rows: Mapping[str, int]
    places: Mapping[str, float]
    ways: Sequence[Sequence[str]]  # names in `places`: a box, bends, a box
    width: float


def lay_out(names: Iterable[str], arrows: Iterable[Arrow]) -> Layout:
    """Place boxes so that every arrow goes down."""
    arrows = list(arrows)
    rows = _rows(list(names), arrows)
    ways = [_way(arrow, rows) for arrow in arrows]
    levels = _levels(rows, ways)
    links = [link for way in ways for link in pairwise(way)]
    _order(levels, links)
    places = _places(levels, links)
    width = max(abs(place) + _half(name) for name, place in places.items()) * 2
    boxes = {name: row for name, row in rows.items() if "|" not in name}
    return Layout(boxes, places, ways, width)


def _rows(names: Sequence[str], arrows: Sequence[Arrow]) -> dict[str, int]:
    """Each box one row above the highest that it imports; what nothing needs so low goes up."""
    rows = dict.fromkeys(names, 0)
    for _ in names:
        for upper, lower in arrows:
            rows[upper] = max(rows[upper], rows[lower] + 1)
    for name in names:
        above = [rows[upper] for upper, lower in arrows if lower == name]
        if above and not any(upper == name for upper, _ in arrows):
            rows[name] = min(above) - 1
    return rows


def _way(arrow: Arrow, rows: Mapping[str, int]) -> list[str]:
    upper, lower = arrow
    bends = [f"{upper}|{lower}|{row}" for row in range(rows[upper] - 1, rows[lower], -1)]
    return [upper, *bends, lower]


def _levels(rows: Mapping[str, int], ways: Sequence[Sequence[str]]) -> list[list[str]]:
    levels: list[list[str]] = [[] for _ in range(max(rows.values()) + 1)]
    for name, row in rows.items():
        levels[row].append(name)
    for way in ways:
        for step, bend in enumerate(way[1:-1], start=1):
            levels[rows[way[0]] - step].append(bend)
    return levels


def _order(levels: list[list[str]], links: Sequence[Arrow]) -> None:
    """Turn the boxes of each row, over and over, to the order with the fewest crossings."""
    for _ in range(SWEEPS):
        for row, level in enumerate(levels):
            levels[row] = min(
                map(list, permutations(level)), key=lambda order: _cost(levels, row, order, links)
            )


def _cost(
    levels: Sequence[Sequence[str]], row: int, order: Sequence[str], links: Sequence[Arrow]
) -> tuple[int, float]:
    """Crossings with the rows beside this one, then how far its arrows lean."""
    crossings, lean = 0, 0.0
    mine = {name: _share(place, order) for place, name in enumerate(order)}
    for other in (row - 1, row + 1):
        if 0 <= other < len(levels):
            theirs = {name: _share(p, levels[other]) for p, name in enumerate(levels[other])}
            pairs = [
                (mine[a if a in mine else b], theirs[b if b in theirs else a])
                for a, b in links
                if {a, b} & mine.keys() and {a, b} & theirs.keys()
            ]
            crossings += sum((a - c) * (b - d) < 0 for (a, b), (c, d) in combinations(pairs, 2))
            lean += sum((a - b) ** 2 for a, b in pairs)
    return crossings, lean


def _share(place: int, order: Sequence[str]) -> float:
    return (place + 0.5) / len(order)


def _places(levels: Sequence[Sequence[str]], links: Sequence[Arrow]) -> dict[str, float]:
    """Each box near the middle of those it is linked to, none over another."""
    places = {}
    for level in levels:
        places.update(_spread(level, [0.0] * len(level)))
    for _, level in product(range(SWEEPS), [*levels, *reversed(levels)]):
        wanted = []
        for name in level:
            near = [places[b if a == name else a] for a, b in links if name in (a, b)]
            wanted.append(sum(near) / len(near) if near else places[name])
        places.update(_spread(level, wanted))
    middle = (min(places.values()) + max(places.values())) / 2
    return {name: place - middle for name, place in places.items()}


def _spread(level: Sequence[str], wanted: Sequence[float]) -> dict[str, float]:
    """The places nearest to those wanted that keep the order and the gaps.

    Neighbours that would overlap become one block, which stands where its members want it in the
    mean (the pool-adjacent-violators way to fit a growing sequence).
    """
    offsets = [0.0]
    for left, right in pairwise(level):
        offsets.append(offsets[-1] + _half(left) + GAP + _half(right))
    blocks: list[list[float]] = []
    for want, offset in zip(wanted, offsets, strict=True):
        blocks.append([want - offset])
        while len(blocks) > 1 and _mean(blocks[-2]) > _mean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    starts = [_mean(block) for block in blocks for _ in block]
    return {
        name: start + offset for name, start, offset in zip(level, starts, offsets, strict=True)
    }


def _half(name: str) -> float:
    return (BEND if "|" in name else 1) / 2


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
