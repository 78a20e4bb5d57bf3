"""How a change reaches the disk whole: locks, flushes and atomic renames.

Knows files and directories. Knows nothing of bundles.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

_AT_FDCWD = -100
_NOREPLACE, _EXCHANGE = 1, 2  # flags of Linux's renameat2
# Errors of a kernel or a filesystem without renameat2.
_NOT_OFFERED = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Wait for a directory's lock and hold it; the kernel releases it when the process dies."""
    while True:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with contextlib.suppress(OSError):  # NFS has no locks on directories: go on without
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            # It may have been exchanged for another directory while we waited.
            if os.path.samestat(os.fstat(descriptor), directory.stat()):
                yield
                return
        finally:
            os.close(descriptor)


def is_locked(directory: Path) -> bool:
    """Whether a process holds the directory's lock; True where that cannot be determined."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def exchange(one: Path, other: Path) -> None:
    """Swap two directories; at any moment each name is one of them.

    Where the system cannot do that, `other` is missing for a moment and is kept under a name that
    begins with `previous_prefix`.
    """
    if _renameat2(one, other, _EXCHANGE):
        return
    aside = other.with_name(previous_prefix(other) + uuid.uuid4().hex)
    try:
        other.rename(aside)
        one.rename(other)
    except BaseException:
        if not os.path.lexists(other):
            aside.rename(other)
        raise
    aside.rename(one)


def previous_prefix(path: Path) -> str:
    """How the temporary names begin that `exchange` gives to directories."""
    return f".{path.name}.previous-"


def rename_new(source: Path, target: Path) -> None:
    """Rename, but fail where the target exists."""
    if _renameat2(source, target, _NOREPLACE):
        return
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    source.rename(target)


def remove_tree(directory: Path) -> None:
    """Remove as much of a directory as can be removed, even when interrupted meanwhile."""
    try:
        shutil.rmtree(directory, ignore_errors=True)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise


def write_synced(path: Path, data: bytes) -> None:
    """Write a file and wait until it is on the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Wait until a file's contents, or a directory's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_directories(root: Path) -> None:
    """`sync` a directory and all below it."""
    for directory, _, _ in os.walk(root):
        sync(Path(directory))


def _renameat2(source: Path, target: Path, flag: int) -> bool:
    """Call Linux's renameat2, which Python lacks; False where the system does not offer it."""
    try:
        function = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    if not function(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flag):
        return True
    number = ctypes.get_errno()
    if number in _NOT_OFFERED:
        return False
    raise OSError(number, os.strerror(number), str(target))
