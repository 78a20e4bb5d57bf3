"""A bundle is written whole or not at all: beside its place, flushed, then moved there.

Knows files and the order in which they reach the disk. Knows nothing of what they hold.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from paligemma_edge.runtime.bundle import MANIFEST, Bundle
from paligemma_edge.runtime.contract import FileRecord, Manifest
from paligemma_edge.runtime.errors import BundleError, OutputError

_CHUNK = 4 << 20


@dataclass(frozen=True)
class BundleWriter:
    """A bundle that is being written, in a hidden directory beside its final place."""

    directory: Path
    target: Path

    def path(self, name: str) -> Path:
        """Where to write a file of the bundle; its directory is made."""
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

    def require_space(self, size: int) -> None:
        """Fail now rather than at the end where `size` bytes and 5 % more do not fit."""
        free = shutil.disk_usage(self.directory).free
        if free < size * 1.05:
            raise OutputError(
                errno.ENOSPC,
                f"the bundle needs {_gigabytes(size * 1.05)}, {self.target.parent} has "
                f"{_gigabytes(free)} free; free some or choose another disk",
            )

    def finish(self, manifest: Manifest, progress: Callable[[int], None] | None = None) -> Manifest:
        """Record every file, flush all of it to disk, write the manifest last."""
        records = {name: _record(self.directory / name, progress) for name in self.files()}
        complete = dataclasses.replace(manifest, files=records)
        _write_manifest(self.directory, complete)
        return complete


@contextlib.contextmanager
def new_bundle(
    target: str | os.PathLike[str], *, overwrite: bool = False
) -> Iterator[BundleWriter]:
    """Write a bundle whole or not at all: nothing is left behind when the block fails.

    An existing bundle is kept unless `overwrite`, and then until the new one is complete.
    """
    final = Path(os.path.abspath(target))  # noqa: PTH100 - resolve() would follow a link
    _check_target(final, overwrite)
    staging = final.with_name(f".{final.name}.partial-{os.getpid()}")
    with _as_output_errors(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(final)
        staging.mkdir()
        try:
            yield BundleWriter(staging, final)
            if not (staging / MANIFEST).is_file():
                raise AssertionError("the writer was not finished")
            _sync_directories(staging)
            _swap(staging, final)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def amend_bundle(
    bundle: Bundle, files: Mapping[str, bytes], changes: Callable[[Manifest], Manifest]
) -> Bundle:
    """Add or replace small files; the manifest, replaced last, makes them part of the bundle."""
    records = dict(bundle.manifest.files)
    with _as_output_errors(bundle.path):
        for name, data in files.items():
            path = bundle.path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            _replace(path, data)
            records[name] = FileRecord(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        manifest = dataclasses.replace(changes(bundle.manifest), files=records)
        _write_manifest(bundle.path, manifest)
    return Bundle(bundle.path, manifest)


def _check_target(final: Path, overwrite: bool) -> None:
    if not os.path.lexists(final):
        return
    if not overwrite:
        raise OutputError(
            errno.EEXIST, f"{final} exists and is kept; give --overwrite or another name"
        )
    if final.is_symlink() or not (final / MANIFEST).is_file():
        raise OutputError(
            errno.EEXIST, f"{final} is not a bundle and is kept; remove it or give another name"
        )


def _remove_abandoned(final: Path) -> None:
    """Remove what a killed export of the same bundle left, but not one that still runs."""
    for path in final.parent.glob(f".{final.name}.partial-*"):
        pid = path.name.rpartition("-")[2]
        if pid.isdigit() and not Path("/proc", pid).exists():
            shutil.rmtree(path, ignore_errors=True)


def _record(path: Path, progress: Callable[[int], None] | None) -> FileRecord:
    digest, size = hashlib.sha256(), 0
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
            if progress:
                progress(len(chunk))
        os.fsync(file.fileno())
    return FileRecord(bytes=size, sha256=digest.hexdigest())


def _write_manifest(directory: Path, manifest: Manifest) -> None:
    text = json.dumps(manifest.to_json(), indent=2, ensure_ascii=False) + "\n"
    _replace(directory / MANIFEST, text.encode())


def _replace(path: Path, data: bytes) -> None:
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        _sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def _swap(staging: Path, final: Path) -> None:
    previous = final.with_name(f".{final.name}.previous-{os.getpid()}")
    if final.exists():
        final.rename(previous)
    try:
        staging.rename(final)
    except OSError:
        if previous.exists():
            previous.rename(final)
        raise
    _sync(final.parent)
    shutil.rmtree(previous, ignore_errors=True)


def _sync_directories(root: Path) -> None:
    for directory, _, _ in os.walk(root):
        _sync(Path(directory))


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _as_output_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        if isinstance(error, BundleError) or error.errno is None:
            raise
        reason = os.strerror(error.errno)
        raise OutputError(
            error.errno, f"cannot write {target}: {reason}; nothing was changed"
        ) from None


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
