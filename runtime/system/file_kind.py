"""What is in the place of a file: a folder, a pipe, a device, or a pointer of Git LFS to the file.

Opens nothing that could wait or never end. Knows no format but that of the pointers.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

LFS_POINTER = (
    "is a pointer of Git LFS, not the file itself; run `git lfs pull` in the clone that it is from"
)
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
# https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md: its first line, and less than this.
_LFS_START, _LFS_BYTES = b"version https://git-lfs.github.com/spec/v", 1024


def kind_of(status: os.stat_result) -> str:
    """What is there that is no regular file."""
    return next((kind for fits, kind in _KINDS if fits(status.st_mode)), "of an unknown kind")


def problem_of_file(path: Path) -> str | None:
    """Why what is there cannot be read as a file, and what to do; links are followed.

    None for a regular file with content of its own, and where nothing can be seen.
    """
    try:
        status = path.stat()
    except (OSError, ValueError):  # ValueError: the name holds a NUL byte
        return None
    if not stat.S_ISREG(status.st_mode):
        return f"is {kind_of(status)}, not a regular file; put the file itself in its place"
    return LFS_POINTER if is_lfs_pointer(path) else None


def is_lfs_pointer(path: Path) -> bool:
    """Whether a regular file is what a clone without Git LFS has in its place."""
    try:
        if path.stat().st_size >= _LFS_BYTES:
            return False
        with path.open("rb") as file:
            return file.read(len(_LFS_START)) == _LFS_START
    except OSError:
        return False
