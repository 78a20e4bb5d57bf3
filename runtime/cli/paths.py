"""Which arguments are paths, and the working directory that relative ones are seen from."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from paligemma_edge.runtime.errors import PaliGemmaError

FOLDERS = frozenset({"BUNDLE", "DIR", "CHECKPOINT", "ADAPTER"})  # by their names in help
FILES = frozenset({"PATHS", "FILE", "TARGET", "NPZ", "RECIPE"})

_RECIPE_SUFFIX = ".toml"  # other recipes are names


def has_relative_paths(parser: argparse.ArgumentParser, options: argparse.Namespace) -> bool:
    """Whether any path of a command's options is seen from the working directory."""
    return any(
        _is_relative(os.fspath(path), action.metavar)
        for action in parser._actions
        if action.metavar in FOLDERS | FILES
        for path in _paths_of(vars(options).get(action.dest))
    )


@contextlib.contextmanager
def working_directory(*, needed: bool) -> Iterator[None]:
    """FileNotFoundError where it is needed and gone, in place of whatever that leads to."""
    try:
        if needed:
            Path.cwd()
        yield
    except PaliGemmaError:
        if needed:
            Path.cwd()
        raise


def _paths_of(value: object) -> list[str | os.PathLike[str]]:
    values = value if isinstance(value, list) else [value]
    return [one for one in values if isinstance(one, str | os.PathLike)]


def _is_relative(path: str, kind: object) -> bool:
    """Standard input, `camera:0` and the names of recipes are seen from everywhere."""
    is_name = path == "-" or ":" in path or (kind == "RECIPE" and not path.endswith(_RECIPE_SUFFIX))
    return not is_name and not os.path.isabs(path)  # noqa: PTH117 - of a name as it was given
