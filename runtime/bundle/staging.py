"""Files on their way into a bundle: written in a hidden directory, recorded, flushed, moved.

Knows files and the order in which they reach the disk. Knows nothing of what they hold.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from paligemma_edge.runtime.bundle.bundle import Bundle, check_place, piece_digest, sha256
from paligemma_edge.runtime.errors import BundleError, OutputError
from paligemma_edge.runtime.manifest import FileRecord, Manifest, piece_count
from paligemma_edge.runtime.system import disk

_NEARLY_FULL = 16 << 20  # bytes free
_PREFIX = ".amend-"


@dataclass(frozen=True)
class StagedFiles:
    """Files of a bundle that are being written, in a hidden directory on the bundle's disk."""

    directory: Path
    target: Path

    def path(self, name: str) -> Path:
        """The path to write a file of the bundle to; its directory is created."""
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def write(self, name: str, data: bytes) -> None:
        """Write a small file."""
        self.path(name).write_bytes(data)

    def files(self) -> list[str]:
        """Names of the files written so far."""
        paths = (path for path in self.directory.rglob("*") if path.is_file())
        return sorted(path.relative_to(self.directory).as_posix() for path in paths)

    def bytes(self) -> int:
        """Size of the files written so far."""
        return sum((self.directory / name).stat().st_size for name in self.files())

    def require_space(self, size: int) -> None:
        """Fail now rather than at the end where `size` bytes and 5 % more do not fit."""
        free = shutil.disk_usage(self.directory).free
        if free < size * 1.05:
            raise OutputError(
                errno.ENOSPC,
                f"the bundle needs {_readable(size * 1.05)}, {self.target.parent} has "
                f"{_readable(free)} free; free some or choose another disk",
            )

    def records(self, progress: Callable[[int], None] | None = None) -> dict[str, FileRecord]:
        """Digest and flush every file. `progress` is called with the bytes of each chunk."""
        return {name: _record(self.directory / name, progress) for name in self.files()}


def staging_name() -> str:
    """A new name for a hidden directory in a bundle."""
    return _PREFIX + uuid.uuid4().hex


def remove_strays(bundle: Path) -> None:
    """Remove what killed processes staged in a bundle; the caller holds the bundle's lock.

    A process that writes for long holds the lock of its staging directory; others hold the
    bundle's while they write.
    """
    for staged in bundle.glob(f"{_PREFIX}*"):
        if not disk.is_locked(staged):
            disk.remove_tree(staged)


def record_of(data: bytes) -> FileRecord:
    """The record of a small file in a manifest."""
    return FileRecord(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def to_bytes(manifest: Manifest) -> bytes:
    """The contents of `manifest.json`."""
    return (json.dumps(manifest.to_json(), indent=2, ensure_ascii=False) + "\n").encode()


def put(directory: Path, contents: Mapping[str, bytes]) -> None:
    """Replace files in order, once all are on the disk, so that a full disk changes nothing."""
    staged = directory / staging_name()
    try:
        staged.mkdir()
        drafts = [(draft(staged, directory, name, data), name) for name, data in contents.items()]
        for path, name in drafts:
            move(path, directory, name)
    finally:
        disk.remove_tree(staged)


def draft(staged: Path, directory: Path, name: str, data: bytes) -> Path:
    """Write a file that `move` then puts in place, and create its folder there."""
    check_place(directory, name)
    (directory / name).parent.mkdir(parents=True, exist_ok=True)
    path = staged / f".{uuid.uuid4().hex}"  # not a valid name of a file of a bundle
    disk.write_synced(path, data)
    return path


def move(source: Path, directory: Path, name: str) -> None:
    """Put a draft in its place, replacing what is there."""
    source.replace(directory / name)
    disk.sync((directory / name).parent)


@contextlib.contextmanager
def as_output_errors(target: Path) -> Iterator[None]:
    """Raise errors of the system as one OutputError about `target`."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        number = error.errno or _guess_errno(target)
        raise OutputError(
            number, f"cannot write {target}: {os.strerror(number)}; nothing was changed"
        ) from None


def check_same_model(before: Bundle, now: Bundle, names: Iterable[str]) -> None:
    """BundleError where one of these files is no longer what it was."""
    files = before.manifest.files
    if any(now.manifest.files.get(name) != files[name] for name in names):
        raise BundleError(f"bundle {now.path} was replaced meanwhile; run the command again")


def _record(path: Path, progress: Callable[[int], None] | None) -> FileRecord:
    digest = sha256(path, progress)
    disk.sync(path)
    return FileRecord(bytes=path.stat().st_size, sha256=digest, pieces=_pieces(path))


def _pieces(path: Path) -> tuple[str, ...]:
    count = piece_count(path.stat().st_size)
    if count < 2:
        return ()
    with ThreadPoolExecutor() as pool:
        return tuple(pool.map(lambda piece: piece_digest(path, piece), range(count)))


def _guess_errno(target: Path) -> int:
    """The errno where numpy's tofile does not report one, only how much it wrote."""
    with contextlib.suppress(OSError):
        if shutil.disk_usage(target.parent).free < _NEARLY_FULL:
            return errno.ENOSPC
    return errno.EIO


def _readable(size: float) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size / 1e3:.1f} kB"
