"""The imports of the package, read by grimp from its source: room by room, with their lines."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[2]
PACKAGE = "paligemma_edge"
FRONT_DOOR = "package"  # the folder of the package's own files
FOLDERS = ("runtime", "quantize", "export", FRONT_DOOR)  # lowest first
ALL, FACADE_AND_BELOW = "all lower", "facade and lower"


@dataclass(frozen=True)
class Import:
    """One line of a module that imports another; modules by their paths in the tree."""

    importer: str
    imported: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.importer}:{self.line}: {self.text}"


@dataclass(frozen=True)
class Rooms:
    """What `rooms.toml` holds; rooms are named `runtime.engine`."""

    folders: Mapping[str, Sequence[str]]
    files: Mapping[str, str]  # module to room
    allowed: Mapping[str, frozenset[str]]  # of its own folder, beside the ground
    words: Mapping[str, str]  # for a room that may import many

    def room(self, module: str) -> str:
        """The room of a module."""
        return self.files.get(module) or ".".join(module.split(".")[:2])

    def allows(self, importer: str, imported: str) -> bool:
        """Whether one room may import another."""
        folder, other = importer.partition(".")[0], imported.partition(".")[0]
        if folder != other:
            return other in self.folders[folder]
        ground = imported == f"{folder}.ground"
        return importer == imported or ground or imported in self.allowed[importer]


def read_rooms() -> Rooms:
    """The table."""
    table = tomllib.loads((ROOT / "tests/house/rooms.toml").read_text(encoding="utf-8"))
    files = {
        f"{folder}.{name}".rstrip("."): f"{folder}.{room}"
        for folder, rooms in table["files"].items()
        for room, names in rooms.items()
        for name in names
    }
    allowed = {
        f"{folder}.{room}": frozenset(f"{folder}.{name}" for name in _above(table[folder], room))
        for folder in FOLDERS
        for room in table[folder]
    }
    words = {
        f"{folder}.{room}": imports
        for folder in FOLDERS
        for room, imports in table[folder].items()
        if isinstance(imports, str)
    }
    return Rooms(table["folders"], files, allowed, words)


def _above(rooms: Mapping[str, str | Sequence[str]], room: str) -> Sequence[str]:
    """The rooms that one may import; those named have rows above its own."""
    names, imports = list(rooms), rooms[room]
    above = names[: names.index(room)]
    if imports == ALL:
        return above
    if imports == FACADE_AND_BELOW:
        return names[: names.index("facade") + 1]
    if unknown := [name for name in imports if name not in above]:
        raise ValueError(f"{room} may not import {unknown}: they have no rows above its own")
    return list(imports)


@cache
def graph() -> grimp.ImportGraph:
    """All imports, also those inside functions and under TYPE_CHECKING."""
    return grimp.build_graph(PACKAGE, cache_dir=None)


def modules() -> list[str]:
    """All modules by their paths in the tree; the sample images have no code."""
    names = sorted(_short(name) for name in graph().modules)
    return [name for name in names if name.partition(".")[0] in FOLDERS]


def imports() -> Iterator[Import]:
    """All lines that import one of our modules."""
    for importer in sorted(graph().modules):
        for imported in sorted(graph().find_modules_directly_imported_by(importer)):
            for detail in graph().get_import_details(importer=importer, imported=imported):
                yield Import(
                    _short(importer),
                    _short(imported),
                    detail["line_number"],
                    detail["line_contents"],
                )


def imports_of_file(path: Path) -> set[str]:
    """Our modules that a file outside the package imports."""
    tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    names = {node.module or "" for node in tree if isinstance(node, ast.ImportFrom)}
    return {_short(name) for name in names if name.startswith(PACKAGE)}


def _short(module: str) -> str:
    """The module by its path in the tree: `runtime.model`, `package.__main__`."""
    inner = module.removeprefix(PACKAGE).removeprefix(".")
    return f"{FRONT_DOOR}.{inner}".rstrip(".") if inner in ("", "__main__") else inner
