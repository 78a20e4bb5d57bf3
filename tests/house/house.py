"""The rooms of the package and what each imports, as the diagram and its source table have it."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from tests.house.imports import ROOT, imports, read_rooms

TABLE = ROOT / "docs/house.json"
DIAGRAM = ROOT / "docs/house.png"
PAGE = ROOT / "docs/architecture.md"
START, END = "<!-- rooms -->", "<!-- /rooms -->"
GROUND = "What every other room of its folder may import."


@dataclass(frozen=True)
class Room:
    """One box of the diagram."""

    about: str
    imports: tuple[str, ...]  # other rooms, of other folders too


House = Mapping[str, Room]


def read_house() -> House:
    """All rooms, in the order of the table, by the imports of today."""
    rooms = read_rooms()
    names = list(rooms.allowed)
    found: dict[str, set[str]] = {name: set() for name in names}
    for line in imports():
        found[rooms.room(line.importer)].add(rooms.room(line.imported))
    files = {name: [file for file, room in rooms.files.items() if room == name] for name in names}
    return {
        name: Room(_about(name, files[name]), tuple(sorted(found[name] - {name}, key=names.index)))
        for name in names
    }


def as_json(house: House) -> str:
    """The source table of the diagram."""
    return json.dumps({name: asdict(room) for name, room in house.items()}, indent=1) + "\n"


def as_markdown(house: House) -> str:
    """The table of rooms in the page about the architecture, highest first."""
    rooms = read_rooms()
    lines = ["| room | what it knows | may import |", "| --- | --- | --- |"]
    for name, room in reversed(list(house.items())):
        named = [other for other in house if other in rooms.allowed[name] and not is_ground(other)]
        words = rooms.words.get(name) or ", ".join(other.partition(".")[2] for other in named)
        lines.append(f"| `{name.replace('.', '/')}` | {room.about} | {words or '-'} |")
    return "\n".join(lines)


def with_table(page: str, house: House) -> str:
    """The page with the table of today between its marks."""
    before, _, rest = page.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n{as_markdown(house)}\n{END}{after}"


def digest(house: House) -> str:
    """What the diagram carries, so that another table's diagram is known."""
    return hashlib.sha256(as_json(house).encode()).hexdigest()


def folder(room: str) -> str:
    """The folder of a room."""
    return room.partition(".")[0]


def is_ground(room: str) -> bool:
    """Whether the room has no arrows, as every other may import it."""
    return room.endswith(".ground")


def arrows(house: House, name: str) -> list[tuple[str, str]]:
    """What the rooms of a folder import of each other, less what another path shows; no ground."""
    rooms = [room for room in house if folder(room) == name and not is_ground(room)]
    own = {
        room: set(house[room].imports) & set(rooms[:row])  # a circle would have no end
        for row, room in enumerate(rooms)
    }
    reached = {room: _reached(own, room) for room in own}
    return [
        (room, other)
        for room, others in own.items()
        for other in sorted(others)
        if not any(other in reached[between] for between in others)
    ]


def _reached(imports: Mapping[str, set[str]], room: str) -> set[str]:
    return imports[room].union(*(_reached(imports, other) for other in imports[room]))


def _about(room: str, files: Sequence[str]) -> str:
    """The first sentence of the room's docstring, or of its folder's, after the names of files."""
    names = [name.partition(".")[2] for name in files if "." in name]
    listed = f"{', '.join(names)}: " if len(names) > 1 or is_ground(room) else ""
    if is_ground(room):
        return listed + GROUND
    path = ROOT / room.replace(".", "/")
    sources = (path / "__init__.py", path.with_suffix(".py"), path.parent / "__init__.py")
    source = next(source for source in sources if source.exists())
    docstring = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""
    sentence = " ".join(docstring.replace("`", "").split()).split(". ")[0].rstrip(".")
    return f"{listed}{sentence}."
