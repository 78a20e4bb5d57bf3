"""Each room imports what `rooms.toml` allows it, and nothing else."""

from __future__ import annotations

import pytest

from tests.house.imports import ROOT, imports, imports_of_file, modules, read_rooms

ROOMS = read_rooms()


def test_every_module_is_in_a_room_of_the_table() -> None:
    assert {ROOMS.room(module) for module in modules()} == set(ROOMS.allowed)


@pytest.mark.parametrize("room", ROOMS.allowed)
def test_a_room_imports_only_what_the_table_allows(room: str) -> None:
    mine = [line for line in imports() if ROOMS.room(line.importer) == room]
    refused = [line for line in mine if not ROOMS.allows(room, ROOMS.room(line.imported))]
    assert not refused, f"tests/house/rooms.toml does not let {room} import:\n" + "\n".join(
        map(str, refused)
    )


@pytest.mark.parametrize(
    ("importer", "imported", "allowed"),
    [
        ("runtime.engine", "runtime.device", True),
        ("runtime.engine", "runtime.ground", True),
        ("runtime.engine", "runtime.bundle", False),
        ("runtime.ground", "runtime.system", False),
        ("runtime.run", "runtime.model", False),  # no room has this name
        ("package.front_door", "runtime.facade", True),
        ("runtime.facade", "package.front_door", False),
        ("runtime.run", "runtime.facade", True),
        ("runtime.run", "runtime.diagnostics", False),
        ("runtime.cli", "runtime.run", True),
        ("runtime.cli", "quantize.cli", False),
        ("quantize.variant", "runtime.facade", True),
        ("quantize.variant", "export.checkpoint", False),
        ("export.lora", "quantize.schemes", True),
    ],
)
def test_the_table_is_read_as_it_is_meant(importer: str, imported: str, allowed: bool) -> None:
    assert ROOMS.allows(importer, imported) == allowed


def test_a_row_names_only_rows_above_it() -> None:
    names = list(ROOMS.allowed)
    for row, (name, allowed) in enumerate(ROOMS.allowed.items()):
        assert allowed <= set(names[:row]), name


def test_the_command_of_optimum_imports_the_command_lines_alone() -> None:
    """It is installed in a namespace of optimum's, where no graph of imports finds it."""
    path = ROOT / "export/optimum_register/register_paligemma_edge.py"
    assert imports_of_file(path) == {"export.cli.export", "runtime.cli.main"}


def test_imports_inside_functions_and_for_types_alone_count() -> None:
    lines = [line for line in imports() if line.importer == "package"]
    assert any(line.text.startswith("from") and line.imported == "runtime.model" for line in lines)
