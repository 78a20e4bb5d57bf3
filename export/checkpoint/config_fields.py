"""Values of config.json, checked one by one: a whole number, a number, a square's side.

Knows ranges. Knows no field's meaning.
"""

from __future__ import annotations

from paligemma_edge.export.checkpoint.unsupported import Json, refuse

MOST_LAYERS = 1000  # far beyond every PaliGemma, and nothing of such a size hangs the exporter
_MOST_SIZE = 2**24  # widths, sides, heads, rows of the embedding


def present(values: Json) -> Json:
    """The fields that are there and not null."""
    return {name: value for name, value in values.items() if value is not None}


def side(values: Json, name: str) -> int:
    """The side of a square, which may be given twice."""
    value = values[name]
    if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
        value = value[0]
    return integer({name: value}, name)


def integer(values: Json, name: str, least: int = 1, most: int = _MOST_SIZE) -> int:
    """A whole number within a range."""
    value = values[name]
    if type(value) is not int or not least <= value <= most:
        refuse(name, value, f"a whole number from {least} to {most}")
    return value


def number(values: Json, name: str, least: float, most: float) -> float:
    """A number within a range; NaN is in none."""
    value = values[name]
    if type(value) not in (int, float) or not least <= value <= most:
        refuse(name, value, f"a number from {least:g} to {most:g}")
    return float(value)
