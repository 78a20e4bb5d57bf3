"""How a change reaches the disk whole: locks, flushes, and renames that nothing can split.

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
_NOT_OFFERED = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)  # by a kernel or a filesystem


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Wait for a directory's lock and hold it; the kernel lets it go when the process dies."""
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
    """Whether a process holds the directory's lock; yes where that cannot be told."""
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
    """Swap two directories; each name holds one of them at any moment.

    Where the system cannot, `other` is missing for a moment and waits at `previous_prefix`.
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
    """How the names begin under which `exchange` puts a directory aside."""
    return f".{path.name}.previous-"


def rename_new(source: Path, target: Path) -> None:
    """Rename, but fail where the target exists."""
    if _renameat2(source, target, _NOREPLACE):
        return
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    source.rename(target)


def remove_tree(directory: Path) -> None:
    """Remove a directory as far as that goes, even when interrupted meanwhile."""
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
    """False where it is not offered. Python has no call for it."""
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
