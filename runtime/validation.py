"""Checks of option values, before anything is done with them."""

from __future__ import annotations

import math
import re
import sys
from decimal import Decimal
from numbers import Integral, Real
from typing import Any, TypeGuard

from paligemma_edge.runtime.errors import OptionError
from paligemma_edge.runtime.printable import short_line

_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*([KMGT])(i?)B", re.ASCII | re.IGNORECASE)

_PIXELS = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*([KMG]?)", re.ASCII | re.IGNORECASE)


def check_count(name: str, value: object, most: int | None = None) -> int:
    """A whole number from 1 to `most`; OptionError that names the option for anything else."""
    whole = _whole(value)
    if not 1 <= whole <= (most or math.inf):
        wanted = "of at least 1" if most is None else f"from 1 to {most}"
        raise OptionError(f"{name} is {value!r}, wanted a whole number {wanted}")
    return whole


def check_bytes(name: str, value: object) -> int:
    """Bytes, as a whole number or as a text with a unit; OptionError for anything else."""
    size = _with_unit(value) if isinstance(value, str) else _whole(value)
    if size < 1:
        shown = short_line(value, 40) if isinstance(value, str) else value
        raise OptionError(
            f"{name} is {shown!r}, wanted a size above 0 with its unit, such as '6GB', '512MB' or "
            "'4GiB'; in Python a whole number is bytes"
        )
    return size


def _with_unit(text: str) -> int:
    """Bytes of "6GB" or "4 GiB"; 0 where it is no such text."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        return 0
    power = 1 + "KMGT".index(match[2].upper())
    return int(float(match[1]) * (1024 if match[3] else 1000) ** power)


def check_pixels(name: str, value: object) -> int:
    """Pixels, as a whole number or as a text such as "50M"; OptionError for anything else."""
    match = _PIXELS.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is not None:
        pixels = Decimal(match[1]) * 1000 ** " KMG".index(match[2].upper() or " ")
        value = int(pixels) if pixels == int(pixels) else value
    return check_count(f"{name}, in pixels such as '50M',", value)


def check_share(name: str, value: object) -> float:
    """A number from 0 to 1; OptionError that names the option for anything else."""
    if not is_number(value) or not 0 <= value <= 1:
        raise OptionError(f"{name} is {value!r}, wanted a number from 0 to 1")
    return float(plain(value))


def check_flag(name: str, value: object) -> bool:
    """True or False, Python's own or numpy's; OptionError for anything else, such as "no" or 0."""
    flag = plain(value)
    if not isinstance(flag, bool):
        raise OptionError(f"{name} is {value!r}, wanted True or False")
    return flag


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is a real number, of Python or another library; True and False are none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def plain(value: Any) -> Any:  # noqa: ANN401 - any option
    """A number or text of another library, such as np.int64, as Python's own; all else as it is.

    JSON takes Python's alone, and identity (`is False`) is theirs.
    """
    numpy = sys.modules.get("numpy")  # whose values there are only once it is imported
    if numpy is not None and isinstance(value, numpy.bool_):
        return bool(value)
    if isinstance(value, str):
        return str.__str__(value)
    if not is_number(value):
        return value
    try:
        return int(value) if isinstance(value, Integral) else float(value)
    except OverflowError:  # a fraction
        return math.inf if value > 0 else -math.inf


def _whole(value: object) -> int:
    """A whole number; 0 where it is none."""
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else 0
