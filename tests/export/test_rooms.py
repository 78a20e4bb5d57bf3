"""Which room of export/ imports which: one way only, type-only imports included."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

EXPORT = Path(__file__).parents[2] / "export"
PACKAGE = "paligemma_edge.export."
ROOMS: dict[str, set[str]] = {
    "checkpoint": set(),
    "graphs": {"checkpoint"},
    "hub": {"checkpoint"},
    "tokenizer": {"checkpoint"},
    "lora": {"checkpoint", "hub"},
    "origin": {"checkpoint", "hub", "lora"},
    "source": {"checkpoint", "graphs", "lora", "tokenizer"},
    "verify": {"checkpoint", "lora", "origin"},
    "variant_names": set(),
    "exporter": {"checkpoint", "origin", "source", "variant_names"},
    "__init__": {"exporter"},
    "cli": {"checkpoint", "exporter", "hub", "lora", "variant_names", "verify"},
    "optimum_register": {"cli"},
}


def modules() -> dict[str, set[str]]:
    """Each module, as "lora.keys", with the modules of export/ that it imports."""
    paths = {".".join(p.relative_to(EXPORT).with_suffix("").parts): p for p in EXPORT.rglob("*.py")}
    return {name: set(_imports(path, set(paths))) for name, path in paths.items()}


def _imports(path: Path, known: set[str]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith(PACKAGE):
            module = f"{node.module}.".removeprefix(PACKAGE)
            for name in node.names:
                inner = f"{module}{name.name}"
                yield inner if inner in known else module.removesuffix(".")


def test_rooms_import_only_what_the_table_allows() -> None:
    actual: dict[str, set[str]] = {room: set() for room in ROOMS}
    for name, imports in modules().items():
        room = name.split(".")[0]
        actual[room] |= {other.split(".")[0] for other in imports} - {room}
    assert actual == ROOMS


def test_no_module_imports_itself_through_others() -> None:
    TopologicalSorter(modules()).prepare()  # raises CycleError
