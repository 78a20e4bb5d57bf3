"""An output: a file that appears whole or not at all, or a stream that is written to.

Knows one name, what is there, and the errors of the disk. Knows nothing of what is written.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from paligemma_edge.runtime.errors import OutputError
from paligemma_edge.runtime.system import disk, streams

_FULL = (errno.ENOSPC, errno.EDQUOT)
_LINKS = 40  # as the kernel: more of them in a row are a loop
_TERMINALS = (4, 5, *range(136, 144))  # Linux's numbers of drivers
_SINKS = (os.makedev(1, 3), os.makedev(1, 7))  # /dev/null and /dev/full
_WANTED = "wanted a file, a pipe or a terminal"


@contextlib.contextmanager
def written(target: Path, option: str) -> Iterator[IO[bytes]]:
    """Write an output: a stream as it comes, a file at once when the block ends without an error.

    What a link leads to decides, as for cp: the file there is replaced and the link stays, or the
    pipe there is written to. `option` is the option that names it, for messages. OutputError
    where it cannot be written: an existing file is then unchanged, and so is whatever is neither
    a file nor a stream.
    """
    if not is_stream(target):
        with drafted(Path(os.path.realpath(target)), option) as file:
            yield file
        return
    try:
        with _opened(target) as file:
            yield file
    except OutputError:
        raise
    except OSError as error:
        raise unwritable(target, error, option) from None


@contextlib.contextmanager
def drafted(target: Path, option: str) -> Iterator[IO[bytes]]:
    """Write a temporary file beside `target`, renamed to it when the block ends without an error.

    A `target` that is a link is replaced, not followed; errors as of `written`.
    """
    draft = target.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with draft.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _refuse_others(target, option)
        draft.replace(target)
        _sync_names(target.parent)
    except OutputError:
        raise
    except OSError as error:
        raise unwritable(target, error, option) from None
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()


def check_target(target: Path, option: str, *, overwrite: bool) -> None:
    """OutputError now where `written` could not write later, or would replace a file unasked."""
    try:
        if is_stream(target):
            _check_stream(target)
            return
        for place in (target, Path(os.path.realpath(target))):
            check_folder(place)
    except OSError as error:
        raise unwritable(target, error, option) from None
    _refuse_others(target, option)
    if not overwrite and target.exists():
        raise OutputError(
            errno.EEXIST,
            f"{target} exists already; give --overwrite to replace it, or another name to {option}",
        )


def check_folder(target: Path) -> None:
    """OSError where no file can be made of this name."""
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not target.parent.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"there is no folder {target.parent}")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def is_stream(target: Path) -> bool:
    """Whether an output of this name is written to something that is there: it has no end state.

    A pipe, a terminal, /dev/null, and whatever this process has open, such as /dev/stdout.
    """
    if descriptor_of(target) is not None:
        return True
    try:
        there = target.stat()
    except OSError:
        return False
    if stat.S_ISFIFO(there.st_mode):
        return True
    number = there.st_rdev
    return stat.S_ISCHR(there.st_mode) and (number in _SINKS or os.major(number) in _TERMINALS)


def descriptor_of(target: Path) -> int | None:
    """The number of what this process has open that a name stands for: 1 for /dev/stdout."""
    path = os.path.abspath(target)  # noqa: PTH100 - of links only those that are followed here
    for _ in range(_LINKS):
        folder, name = os.path.split(path)
        folder = os.path.realpath(folder)
        if re.fullmatch(rf"/proc/{os.getpid()}/(task/[0-9]+/)?fd", folder):
            return int(name) if re.fullmatch("[0-9]{1,9}", name) else None
        path = f"{folder}/{name}"
        if not os.path.islink(path):  # noqa: PTH114
            return None
        path = os.path.join(folder, os.readlink(path))  # noqa: PTH115, PTH118
    return None


def unwritable(target: Path, error: OSError, option: str) -> OutputError:
    """The error for a file that cannot be written."""
    advice = "free some space" if error.errno in _FULL else f"give another name to {option}"
    return OutputError(error.errno, f"cannot write {target}: {error.strerror}; {advice}")


def _opened(target: Path) -> IO[bytes]:
    """A stream; a pipe that nobody reads yet is waited for, as a shell does."""
    number = descriptor_of(target)
    descriptor = os.open(target, os.O_WRONLY | os.O_NOCTTY) if number is None else os.dup(number)
    return io.BufferedWriter(streams.Waiting(descriptor, "wb"))


def _check_stream(target: Path) -> None:
    number = descriptor_of(target)
    if number is not None and not streams.can_write(number):
        raise OSError(errno.EBADF, "it is closed")
    if number is None and not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def _refuse_others(target: Path, option: str) -> None:
    """OutputError for what is there and is no file: a device or a socket is never replaced."""
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:  # a link that leads nowhere included
        return
    except OSError as error:  # such as of links in a circle
        raise unwritable(target, error, option) from None
    if not stat.S_ISREG(mode):
        kind = "a socket" if stat.S_ISSOCK(mode) else "a folder" if stat.S_ISDIR(mode) else ""
        kind = kind or ("a pipe" if stat.S_ISFIFO(mode) else "a device")
        wanted = "wanted a file" if stat.S_ISFIFO(mode) else _WANTED  # in a folder of outputs
        raise OutputError(
            errno.EEXIST,
            f"{target} is {kind}, {wanted}, and is kept; give another name to {option}",
        )


def _sync_names(folder: Path) -> None:
    """Wait until the new name is on the disk, where the filesystem can flush folders."""
    try:
        disk.sync(folder)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EINVAL):
            raise
