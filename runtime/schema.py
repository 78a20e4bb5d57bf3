"""JSON into frozen dataclasses: every field has the type of its annotation, or it is an error.

Knows annotations and plain values. Knows nothing of what they mean, nor of files.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, NoReturn, TypeVar, Union

from paligemma_edge.runtime.printable import short_line

_T = TypeVar("_T")
_SHOWN = 60  # characters of a value in a message


class MismatchError(ValueError):
    """What was found and what was wanted, in one line; the caller adds what to do."""


def parse_json(kind: type[_T], text: str | bytes) -> _T:
    """Parse JSON text as a dataclass; MismatchError where it is not valid JSON or has another form.

    Fields that the dataclass does not have are ignored, those with a default may be absent.
    """
    try:
        data = json.loads(text, parse_constant=_refuse_constant)
    except MismatchError:
        raise
    except (ValueError, RecursionError):
        raise MismatchError("it is not valid JSON") from None
    parsed: _T = parse_value(kind, data)
    return parsed


def parse_value(kind: Any, value: object, where: str = "it") -> Any:  # noqa: ANN401 - a type form
    """A value of JSON as `kind`: a dataclass, `X | None`, Literal, Mapping, tuple or plain type."""
    origin = typing.get_origin(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _parse_dataclass(kind, value, where)
    if origin is Literal:
        allowed = typing.get_args(kind)
        return value if value in allowed else _mismatch(value, f"one of {allowed}", where)
    if origin in (types.UnionType, Union):
        (present,) = (k for k in typing.get_args(kind) if k is not types.NoneType)
        return None if value is None else parse_value(present, value, where)
    if origin is Mapping:
        return _parse_mapping(typing.get_args(kind)[1], value, where)
    if origin is tuple:
        return _parse_tuple(typing.get_args(kind), value, where)
    return _parse_plain(kind, value, where)


def _parse_plain(kind: type, value: object, where: str) -> object:
    if kind is float:
        return _parse_float(value, where)
    if isinstance(value, str):
        _check_text(value, where)
    return value if type(value) is kind else _mismatch(value, f"a {kind.__name__}", where)


def _parse_mapping(element: Any, value: object, where: str) -> dict[str, object]:  # noqa: ANN401
    given = _expect(value, Mapping, "an object", where)
    for name in given:
        _check_text(name, where)
    return {k: parse_value(element, v, f"{where}.{k}") for k, v in given.items()}


def _parse_dataclass(kind: type, value: object, where: str) -> object:
    given = _expect(value, Mapping, "an object", where)
    fields = dataclasses.fields(kind)
    absent = [f.name for f in fields if f.name not in given and not _has_default(f)]
    if absent:
        raise MismatchError(f"{short_line(where)} has no {', '.join(absent)}")
    hints = typing.get_type_hints(kind)
    names = [f.name for f in fields if f.name in given]
    return kind(**{n: parse_value(hints[n], given[n], f"{where}.{n}") for n in names})


def _has_default(field: dataclasses.Field[Any]) -> bool:
    nothing = dataclasses.MISSING
    return field.default is not nothing or field.default_factory is not nothing


def _parse_tuple(elements: tuple[Any, ...], value: object, where: str) -> tuple[object, ...]:
    values = _expect(value, list | tuple, "a list", where)
    if elements[-1] is ...:
        elements = (elements[0],) * len(values)
    if len(values) != len(elements):
        _mismatch(value, f"{len(elements)} values", where)
    pairs = enumerate(zip(elements, values, strict=True))
    return tuple(parse_value(kind, item, f"{where}[{i}]") for i, (kind, item) in pairs)


def _parse_float(value: object, where: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        _mismatch(value, "a number", where)
    try:
        number = float(value)
    except OverflowError:
        number = float("inf")
    return number if abs(number) < float("inf") else _mismatch(value, "a finite number", where)


def _check_text(text: str, where: str) -> None:
    """JSON can hold halves of surrogate pairs, which no file can."""
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        _mismatch(text, "text of whole characters", where)


def _expect(value: object, kind: Any, wanted: str, where: str) -> Any:  # noqa: ANN401
    return value if isinstance(value, kind) else _mismatch(value, wanted, where)


def _mismatch(value: object, wanted: str, where: str) -> NoReturn:
    shown = short_line(repr(value), _SHOWN)
    raise MismatchError(f"{short_line(where)} holds {shown}, wanted {wanted}")


def _refuse_constant(name: str) -> NoReturn:
    raise MismatchError(f"it holds {name}, which is not valid JSON")
