"""A file that appears whole or not at all.

Knows one file and the errors of the disk. Knows nothing of what is written.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from paligemma_edge.runtime.errors import OutputError
from paligemma_edge.runtime.system import disk

_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def drafted(target: Path, option: str) -> Iterator[IO[bytes]]:
    """Write a temporary file beside `target`, renamed to it when the block ends without an error.

    A `target` that is a link is replaced, not followed. OutputError where it cannot be written:
    an existing file is then unchanged. `option` is the option that names the file, for messages.
    """
    draft = target.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with draft.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(target)
        _sync_names(target.parent)
    except OutputError:
        raise
    except OSError as error:
        raise unwritable(target, error, option) from None
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()


def check_file_target(target: Path, option: str) -> None:
    """OutputError now where a file could not be written later."""
    try:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not target.parent.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"there is no folder {target.parent}")
        if not os.access(target.parent, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise unwritable(target, error, option) from None


def check_new(target: Path, option: str) -> None:
    """OutputError where a file exists that would be replaced."""
    if target.exists():
        raise OutputError(
            errno.EEXIST,
            f"{target} exists already; give --overwrite to replace it, or another name to {option}",
        )


def _sync_names(folder: Path) -> None:
    """Wait until the new name is on the disk, where the filesystem can flush folders."""
    try:
        disk.sync(folder)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EINVAL):
            raise


def unwritable(target: Path, error: OSError, option: str) -> OutputError:
    """The error for a file that cannot be written."""
    advice = "free some space" if error.errno in _FULL else f"give another name to {option}"
    return OutputError(error.errno, f"cannot write {target}: {error.strerror}; {advice}")
