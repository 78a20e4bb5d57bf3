"""Fields of config.json, checked one by one: a section, a whole number, a number, a square's side.

Knows ranges. Does not know what a field means.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from paligemma_edge.runtime.errors import CheckpointError
from paligemma_edge.runtime.printable import short_line

Json = Mapping[str, Any]

MOST_LAYERS = 1000  # far above any PaliGemma; a larger count would hang the exporter
_MOST_SIZE = 2**24  # widths, sides, heads, rows of the embedding


def section(data: Json, name: str) -> Json:
    """Return a section of config.json, empty where it is absent."""
    value = data.get(name)
    if value is not None and not isinstance(value, dict):
        damaged(name, value, "an object")
    return value or {}


def reject(
    name: str,
    value: object,
    wanted: str,
    file: str = "config.json",
    advice: str = "this kind of model is not supported",
) -> NoReturn:
    """Raise CheckpointError for a field of config.json, or another file, with an unusable value."""
    raise CheckpointError(f"{file} has {name} {short_line(repr(value))}, wanted {wanted}; {advice}")


def damaged(name: str, value: object, wanted: str, file: str = "config.json") -> NoReturn:
    """Raise CheckpointError for a value that no model has: of another type, or no token id."""
    reject(name, value, wanted, file, "correct the field, or save the checkpoint again")


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
    if type(value) is not int:
        damaged(name, value, f"a whole number from {least} to {most}")
    if not least <= value <= most:
        reject(name, value, f"a whole number from {least} to {most}")
    return value


def number(values: Json, name: str, least: float, most: float) -> float:
    """A number within a range; NaN is in none."""
    value = values[name]
    if type(value) not in (int, float):
        damaged(name, value, f"a number from {least:g} to {most:g}")
    if not least <= value <= most:
        reject(name, value, f"a number from {least:g} to {most:g}")
    return float(value)
