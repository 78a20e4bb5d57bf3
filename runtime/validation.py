"""Checks of option values, before anything is done with them."""

from __future__ import annotations

import math
from numbers import Integral

from paligemma_edge.runtime.errors import OptionError


def check_count(name: str, value: object, most: int | None = None) -> int:
    """A whole number from 1 to `most`; OptionError that names the option for anything else."""
    whole = int(value) if isinstance(value, Integral) and not isinstance(value, bool) else 0
    if not 1 <= whole <= (most or math.inf):
        wanted = "of at least 1" if most is None else f"from 1 to {most}"
        raise OptionError(f"{name} is {value!r}, wanted a whole number {wanted}")
    return whole


def check_gigabytes(name: str, value: float) -> int:
    """Gigabytes above 0, as bytes; OptionError that names the option for anything else."""
    if not 0 < value < math.inf:
        raise OptionError(f"{name} is {value!r}, wanted gigabytes, a number above 0")
    return int(value * 1e9)
