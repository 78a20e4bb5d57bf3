"""Damage that disks, networks and strangers do: to bytes of any format, and to values of JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, TypeAlias

Json: TypeAlias = Any
_Place: TypeAlias = tuple[Any, Any]  # a list or an object, and where in it a value is

_INTEGER_SIZES = (1, 2, 4, 8)
_HEAD = 512  # bytes, where formats keep what decides
_DEEP = 30_000  # levels, far beyond what a parser that calls itself can follow
_LONG = 200_000  # characters
_NASTY_TEXTS = (
    "",
    "\x1b[2J\x1b[31m",
    "one\npaligemma-edge: done\r",
    "\0",
    "\u202etxt.exe",
    "\ud800",
    "../../etc/passwd",
    "/dev/zero",
    "é" * 300,
    "%s%n{0}",
)
_EXTREME_NUMBERS: Sequence[Json] = (
    *(0, -1, 1, 2**15, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63, 2**64, -(2**63), 10**400),
    *(0.5, -0.0, 1e308, -1e308, 5e-324, float("nan"), float("inf"), float("-inf")),
)


def mutated_bytes(data: bytes, random: Random) -> bytes:
    """The data after one to six changes."""
    for _ in range(random.choice((1, 1, 1, 2, 3, 6))):
        data = random.choice(_BYTE_CHANGES)(data, random)
    return data


def mutated_json(value: Json, random: Random) -> bytes:
    """The text of the value after one to three changes; seldom its bytes are changed too."""
    for _ in range(random.choice((1, 1, 2, 3))):
        value = _changed_json(value, random)
    text = json.dumps(value)
    if random.random() < 0.05:
        text = text.replace("0", "[" * _DEEP + "]" * _DEEP, 1)
    data = text.encode()
    return mutated_bytes(data, random) if random.random() < 0.15 else data


def _place(data: bytes, random: Random) -> int:
    """A place in the data, every second time near its begin."""
    end = len(data) if random.random() < 0.5 else min(len(data), _HEAD)
    return random.randrange(end + 1)


def _span(data: bytes, random: Random) -> tuple[int, int]:
    start = _place(data, random)
    return start, min(len(data), start + random.choice((1, 2, 4, 16, 64, 1024)))


def _flip(data: bytes, random: Random) -> bytes:
    return _over(data, _place(data, random), lambda byte: byte ^ 1 << random.randrange(8))


def _replace(data: bytes, random: Random) -> bytes:
    return _over(data, _place(data, random), lambda _: random.choice((0, 255, 127, 128, 1, 254)))


def _over(data: bytes, place: int, change: Callable[[int], int]) -> bytes:
    if not data:
        return data
    place = min(place, len(data) - 1)
    return data[:place] + bytes([change(data[place])]) + data[place + 1 :]


def _insert(data: bytes, random: Random) -> bytes:
    place = _place(data, random)
    return data[:place] + random.randbytes(random.choice((1, 2, 4, 64))) + data[place:]


def _delete(data: bytes, random: Random) -> bytes:
    start, end = _span(data, random)
    return data[:start] + data[end:]


def _duplicate(data: bytes, random: Random) -> bytes:
    start, end = _span(data, random)
    return data[:end] + data[start:end] * random.choice((1, 2, 50)) + data[end:]


def _move(data: bytes, random: Random) -> bytes:
    start, end = _span(data, random)
    place = _place(data, random)
    return data[:place] + data[start:end] + data[place + end - start :]


def _truncate(data: bytes, random: Random) -> bytes:
    return data[: _place(data, random)]


def _extreme_integer(data: bytes, random: Random) -> bytes:
    size = random.choice(_INTEGER_SIZES)
    top = 1 << 8 * size
    number = random.choice((0, 1, top // 2 - 1, top // 2, top - 1, len(data) % top))
    place = _place(data, random)
    order = random.choice(("little", "big"))
    return data[:place] + number.to_bytes(size, order) + data[place + size :]  # type: ignore[arg-type]


_BYTE_CHANGES = (
    *(_flip, _replace, _insert, _delete, _duplicate, _move, _truncate),
    *(_extreme_integer, _extreme_integer),
)


def _changed_json(value: Json, random: Random) -> Json:
    """A copy of the value with one change somewhere in it."""
    value = json.loads(json.dumps(value))
    places = list(_places(value))
    if not places:
        return _other(value, random)
    change = random.choice((_put_other, _put_other, _put_other, _remove, _copy_to, _rename, _wrap))
    change(random.choice(places), random.choice(places), random)
    return value


def _places(value: Json) -> list[_Place]:
    keys = list(value) if isinstance(value, dict) else []
    keys = list(range(len(value))) if isinstance(value, list) else keys
    return [place for key in keys for place in ((value, key), *_places(value[key]))]


def _put_other(place: _Place, _: _Place, random: Random) -> None:
    holder, key = place
    holder[key] = _other(holder[key], random)


def _remove(place: _Place, _: _Place, random: Random) -> None:
    holder, key = place
    del holder[key]


def _copy_to(place: _Place, source: _Place, random: Random) -> None:
    """Put a value where another was; a copy, since nothing may hold itself."""
    holder, key = place
    holder[key] = json.loads(json.dumps(source[0][source[1]]))


def _rename(place: _Place, source: _Place, random: Random) -> None:
    holder, key = place
    if isinstance(holder, dict):
        holder[random.choice((*_NASTY_TEXTS, str(source[1]), f"{key}x"))] = holder.pop(key)
    else:
        holder.insert(0, holder[key])


def _wrap(place: _Place, _: _Place, random: Random) -> None:
    holder, key = place
    holder[key] = random.choice(([holder[key]], {"a": holder[key]}, [holder[key]] * 1000))


def _other(value: Json, random: Random) -> Json:
    """A value of the same kind that is extreme, or one of another kind."""
    if random.random() < 0.5:
        if isinstance(value, str):
            longer = ("x" * _LONG, value * 2, value[:-1], value.upper(), f"{value}/../{value}")
            return random.choice((*_NASTY_TEXTS, *longer))
        if isinstance(value, int | float):
            near = (value + 1, value - 1, -value, value * 1024, str(value))
            return random.choice((*_EXTREME_NUMBERS, *near))
    return random.choice((None, True, 7, -0.5, "text", [], {}, [[]], [1, 2], {"a": None}))
