"""Questions in JSON Lines, {"image": "a.jpg", "prefix": "detect cat"}, each with its own prompt.

The form is that of big_vision, which data sets for PaliGemma have; "prompt" is taken for "prefix",
and other fields are left alone. Knows lines. Opens no image.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO, TypeGuard

from paligemma_edge.runtime.errors import ImageError, OptionError
from paligemma_edge.runtime.printable import short_line
from paligemma_edge.runtime.run.sources import STDIN, Source, Sources
from paligemma_edge.runtime.run.text_lines import text_lines

_OPTION = "--questions"
_SHOWN = 100  # characters of a reason
_MOST_LINES = 2_000_000  # all of them are in memory; VQAv2 has 1.1 million questions
_PROMPTS = ("prefix", "prompt")
_WANTED = 'wanted {"image": "a.jpg", "prefix": "caption en"}'


def read_questions(
    file: str | os.PathLike[str], stdin: TextIO, images: str | os.PathLike[str] | None = None
) -> Sources:
    """A source for each line, with its prompt; a line that cannot be used is its error.

    `images` is the folder that names are relative to: by default that of the file, and for `-`,
    standard input, the current one. OptionError for a file that cannot be read, has no line, or
    does not end within two million lines of a million characters.
    """
    name = os.fspath(file)
    folder = Path(images) if images is not None else Path(name if name != STDIN else "").parent
    try:
        if name == STDIN:
            sources = tuple(_sources("standard input", stdin, folder))
        else:
            with open(name, encoding="utf-8", errors="surrogateescape") as lines:  # noqa: PTH123
                sources = tuple(_sources(name, lines, folder))
    except (OSError, ValueError) as error:  # ValueError: closed, no text, or without an end
        reason = short_line(getattr(error, "strerror", None) or str(error), _SHOWN)
        raise OptionError(
            f"{_OPTION} {name}: cannot be read ({reason}); {_WANTED} in each line"
        ) from None
    if not sources:
        raise OptionError(f"{_OPTION} {name}: has no line, {_WANTED} in each one")
    return Sources(sources)


def _sources(file: str, lines: TextIO, folder: Path) -> Iterator[Source]:
    for number, line in enumerate(text_lines(lines), 1):
        if number > _MOST_LINES:
            raise ValueError(f"it has more than {_MOST_LINES:,} lines, ask in several runs")
        if line.strip():
            yield _source(f"{file}:{number}", line, folder)


def _source(place: str, line: str, folder: Path) -> Source:
    """The question of a line, or its error, whose name is the line's place."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return _unusable(place, "not JSON")
    if not isinstance(entry, dict):
        return _unusable(place, "not a JSON object")
    image, prompt = entry.get("image"), next((entry[k] for k in _PROMPTS if k in entry), None)
    if not _is_file_name(image):
        return _unusable(place, '"image" is not the name of a file')
    if not isinstance(prompt, str):
        return _unusable(place, 'there is no text as "prefix" or "prompt"')
    return Source(image, str(folder / image), (prompt,), place)


def _is_file_name(value: object) -> TypeGuard[str]:
    """Whether a file could have this name: JSON can hold NUL and half a character."""
    try:
        return isinstance(value, str) and bool(value) and b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        return False


def _unusable(place: str, reason: str) -> Source:
    return Source(place, ImageError(f"{place}: {reason}, {_WANTED}"), ("",))
