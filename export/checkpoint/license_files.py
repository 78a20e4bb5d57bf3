"""Licence and terms that lie beside a checkpoint's weights.

Knows their names, and that they are short plain text of the checkpoint's own. Reads no licence.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from paligemma_edge.runtime.system.file_kind import LFS_POINTER, is_lfs_pointer

_STEMS = (
    *("LICENSE", "LICENCE", "NOTICE", "COPYING", "COPYRIGHT", "ATTRIBUTION"),
    *("TERMS", "TERMS_OF_USE", "GEMMA_TERMS", "GEMMA_TERMS_OF_USE"),
    *("USE_POLICY", "PROHIBITED_USE_POLICY", "GEMMA_PROHIBITED_USE_POLICY"),
)
_NAME = re.compile(rf"(?:{'|'.join(_STEMS)})(?:[-_.][A-Za-z0-9._-]*)?", re.IGNORECASE)
# The same names as files of a Hub repository, whose patterns tell capitals from small letters.
LICENSE_NAMES = tuple(
    f"{stem}{ending}"
    for name in _STEMS
    for stem in (name, name.lower())
    for ending in ("", ".txt", ".md")
)
_MOST_BYTES = 1 << 20
_MOST_FILES = 32
_PLAIN = "\t\n\f\r"


@dataclass(frozen=True)
class LicenseFiles:
    """What a bundle takes over, and what it cannot.

    Attributes:
        contents: The files' bytes, by name, in the order of the names.
        refused: A line for each file that is left out: its name and why.
    """

    contents: Mapping[str, bytes]
    refused: tuple[str, ...]


def read_license_files(directory: Path) -> LicenseFiles:
    """The licence files of a checkpoint's directory; of an npz, the files beside it."""
    contents: dict[str, bytes] = {}
    refused = []
    for path in _named_so(directory):
        data = _read(path, directory)
        if isinstance(data, str):
            refused.append(f"{path.name} is left out: {data}")
        elif len(contents) == _MOST_FILES:
            refused.append(f"{path.name} is left out: wanted at most {_MOST_FILES} licence files")
        else:
            contents[path.name] = data
    return LicenseFiles(contents, tuple(refused))


def _named_so(directory: Path) -> list[Path]:
    try:
        names = sorted(filter(_NAME.fullmatch, os.listdir(directory)))  # noqa: PTH208 - names alone
    except OSError:  # a directory whose files can be read, and not listed
        return []
    return [directory / name for name in names if not (directory / name).is_dir()]


def _read(path: Path, directory: Path) -> bytes | str:
    """The bytes of a file, or why they are not taken."""
    if not _is_of(path, directory):
        return "it is not a file of the checkpoint's own"
    if is_lfs_pointer(path):
        return f"it {LFS_POINTER}"
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        return str(error.strerror)
    if len(data) > _MOST_BYTES:
        return f"it has more than {_MOST_BYTES >> 20} MiB"
    return data if _is_text(data) else "it is not plain UTF-8 text"


def _is_of(path: Path, directory: Path) -> bool:
    """Whether a file is the checkpoint's own: a link could lead to any text of this machine.

    huggingface_hub's folders, snapshots/COMMIT, hold links to the files in blobs.
    """
    home, file = (Path(os.path.realpath(one)) for one in (directory, path))
    blobs = home.parents[1] / "blobs" if home.parent.name == "snapshots" else home
    return file.is_file() and file.parent in (home, blobs)


def _is_text(data: bytes) -> bool:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return False
    return all(letter in _PLAIN or unicodedata.category(letter) != "Cc" for letter in text)
