"""The file beside a variant's graphs that says how its weights were changed before rounding.

What calibration decided cannot be recovered from rounded weights, and an adapter that is added to
a layer later needs it. The file holds arrays, each once however many layers share it, and JSON
that says which of them are which change of which layer.
"""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from paligemma_edge.quantize.transforms.changes import Change, Changes
from paligemma_edge.quantize.transforms.rotation import Rotation
from paligemma_edge.runtime.errors import BundleError

CHANGES_FILE = "changes.npz"
_KINDS: Mapping[str, type[Change]] = {kind.__name__: kind for kind in get_args(Change)}
_LAYERS = "layers"
_ROTATION = "rotation"
# What numpy, json and a wrong structure raise.
_UNREADABLE = (
    *(OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, RecursionError),
    *(zipfile.BadZipFile, zlib.error, NotImplementedError),
)
_Kept: TypeAlias = dict[bytes, tuple[int, NDArray[Any]]]  # arrays and their numbers, by contents


def write_changes(path: Path, changes: Changes) -> None:
    """Write the changes of each layer; the same ones always give the same bytes."""
    kept: _Kept = {}
    layers = {
        name: [_describe(change, kept) for change in by_layer] for name, by_layer in changes.items()
    }
    stored: dict[str, Any] = {str(number): array for number, array in kept.values()}
    stored[_LAYERS] = np.frombuffer(json.dumps(layers).encode(), np.uint8)
    np.savez(path, **stored)


def read_changes(path: Path) -> Changes:
    """The changes of each layer. BundleError where the file holds something else."""
    try:
        # Of a damaged file numpy would leave a path open.
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
            layers = json.loads(bytes(stored[_LAYERS]))
            arrays = {name: stored[name] for name in stored.files if name != _LAYERS}
        return {
            name: [_change(entry, arrays) for entry in entries] for name, entries in layers.items()
        }
    except _UNREADABLE as error:
        raise BundleError(
            f"{path} cannot be read as the changes of a variant's weights ({error}); quantize the "
            "variant again with --overwrite"
        ) from None


def _describe(change: Change, kept: _Kept) -> list[Any]:
    """A change as its kind and, by field, the numbers of arrays; new ones are kept."""
    values = {field.name: getattr(change, field.name) for field in dataclasses.fields(change)}
    if isinstance(rotation := values.get(_ROTATION), Rotation):
        values |= {_ROTATION: None, "left": rotation.left, "right": rotation.right}
    numbers = {k: _number(np.asarray(v), kept) for k, v in values.items() if v is not None}
    return [type(change).__name__, numbers]


def _number(array: NDArray[Any], kept: _Kept) -> int:
    contents = repr((array.dtype.str, array.shape)).encode() + array.tobytes()
    return kept.setdefault(contents, (len(kept), array))[0]


def _change(entry: Sequence[Any], arrays: Mapping[str, NDArray[Any]]) -> Change:
    kind, numbers = entry
    values: dict[str, Any] = {name: arrays[str(number)] for name, number in numbers.items()}
    if "left" in values:
        values[_ROTATION] = Rotation(values.pop("left"), values.pop("right"))
    if "first" in values:
        values["first"] = int(values["first"])
    return _KINDS[kind](**values)
