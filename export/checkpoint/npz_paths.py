"""The files of an npz archive: one, or several parts, as large ones are stored on the Hub.

Knows file names. Reads no archive.
"""

from __future__ import annotations

import re
from pathlib import Path

from paligemma_edge.export.checkpoint.content import has_file
from paligemma_edge.runtime.errors import CheckpointError

_PART = re.compile(r"(?P<whole>.+\.npz)\.part-?(?P<number>\d{1,6})", re.IGNORECASE)


def is_npz_name(path: Path) -> bool:
    """Say whether a path has the name of an npz archive, or of a part of one."""
    return path.suffix.lower() == ".npz" or _PART.fullmatch(path.name) is not None


def npz_files(path: Path) -> tuple[Path, ...]:
    """The files of an archive: itself, or its parts `NAME.npz.part0`, `NAME.npz.part1`, and so on.

    `path` is the archive, any of its parts, or NAME.npz where there are only parts. Raises
    CheckpointError where there is none, or a part before the last is missing.
    """
    if path.suffix.lower() == ".npz" and has_file(path):
        return (path,)
    part = _PART.fullmatch(path.name)
    whole = part["whole"] if part else path.name
    parts = _numbered(path.parent, whole)
    if not parts:
        raise CheckpointError(
            f"{path} does not exist, and neither does {whole}.part0; give the path of the npz, "
            "or of its first part"
        )
    if missing := sorted(set(range(max(parts) + 1)) - set(parts)):
        absent = ", ".join(f"part{number}" for number in missing[:5])
        raise CheckpointError(
            f"{path.parent} has {len(parts)} parts of {whole} up to part{max(parts)}, and lacks "
            f"{absent}{' and more' if missing[5:] else ''}; finish the download"
        )
    return tuple(parts[number] for number in sorted(parts))


def _numbered(folder: Path, whole: str) -> dict[int, Path]:
    try:
        matches = [(_PART.fullmatch(path.name), path) for path in folder.iterdir()]
    except OSError:
        return {}
    return {int(m["number"]): path for m, path in matches if m and m["whole"] == whole}
