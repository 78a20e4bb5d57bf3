"""Whether a file of a checkpoint is there, with content of its own.

A pipe or a device in its place would be waited for without an end, and is not absent either.
"""

from __future__ import annotations

import os
from pathlib import Path

from paligemma_edge.runtime.errors import CheckpointError, TokenizerError
from paligemma_edge.runtime.system.file_kind import problem_of_file


def has_file(
    path: Path, error: type[CheckpointError] | type[TokenizerError] = CheckpointError
) -> bool:
    """Whether a file is there; `error` where something else is in its place."""
    require_content(path, error)
    return os.path.isfile(path)  # noqa: PTH113 - Path raises where a name is too long


def require_content(
    path: Path, error: type[CheckpointError] | type[TokenizerError] = CheckpointError
) -> None:
    """Raise `error` where a pipe, a device, a folder or a pointer of Git LFS is in its place."""
    if problem := problem_of_file(path):
        raise error(f"{path} {problem}")
