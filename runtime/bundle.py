"""A directory as a bundle: verified when it is read, atomic when it is written.

Knows files, sizes and digests. Knows nothing of what the graphs hold.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from paligemma_edge.runtime.contract import FileRecord, Manifest
from paligemma_edge.runtime.errors import BundleError, OutputError

MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 16 << 20
_CHUNK = 4 << 20
_SAFE_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Bundle:
    """A bundle whose manifest was read and whose files are regular, in place and of their size."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Bundle:
        """Read the manifest and check every file but its digest; see `verify` for that."""
        directory = Path(path)
        bundle = cls(directory, _read_manifest(directory))
        for name, record in bundle.manifest.files.items():
            _check_file(directory, name, record)
        return bundle

    def file(self, name: str) -> Path:
        """Where a file of the manifest lies."""
        if name not in self.manifest.files:
            raise BundleError(f"bundle {self.path} lists no file {name!r}; export the bundle again")
        return self.path / name

    def verify(self, names: Iterable[str]) -> None:
        """Compare the digests of these files with the manifest; a changed file is an error."""
        wanted = {name: self.manifest.files[name].sha256 for name in names if self.file(name)}
        with ThreadPoolExecutor() as pool:
            digests = pool.map(lambda name: sha256(self.path / name), wanted)
            changed = [n for n, digest in zip(wanted, digests, strict=True) if digest != wanted[n]]
        if changed:
            raise BundleError(
                f"bundle {self.path}: {', '.join(sorted(changed))} differs from its sha256 in "
                f"{MANIFEST}; the file was changed or damaged, copy or export the bundle again"
            )


def sha256(path: Path) -> str:
    """Digest of a file as lower-case hex."""
    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_manifest(directory: Path) -> Manifest:
    path = directory / MANIFEST
    if not directory.is_dir():
        found = "is not a directory" if directory.exists() else "does not exist"
        raise BundleError(f"bundle {directory} {found}; make one with `paligemma-edge export`")
    if not path.is_file() or path.is_symlink():
        raise BundleError(
            f"{directory} has no {MANIFEST}, so it is not a bundle; "
            "make one with `paligemma-edge export`"
        )
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise BundleError(f"{path} is larger than {MAX_MANIFEST_BYTES} bytes; it is no manifest")
    try:
        data = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise BundleError(f"{path} is not JSON; copy or export the bundle again") from None
    return Manifest.from_json(data)


def _check_file(directory: Path, name: str, record: FileRecord) -> None:
    parts = PurePosixPath(name).parts
    if not parts or "/".join(parts) != name or not all(map(_SAFE_PART.fullmatch, parts)):
        raise BundleError(f"bundle {directory} lists the file {name!r}, which is no plain path")
    for depth in range(1, len(parts)):
        if (directory / Path(*parts[:depth])).is_symlink():
            raise BundleError(f"bundle {directory}: {name} lies behind a link; copy it in place")
    _check_status(directory, name, record)


def _check_status(directory: Path, name: str, record: FileRecord) -> None:
    try:
        status = (directory / name).lstat()
    except OSError:
        raise BundleError(
            f"bundle {directory}: {name} is missing; copy or export the bundle again"
        ) from None
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        raise BundleError(
            f"bundle {directory}: {name} is a link or no regular file; copy the file itself"
        )
    if status.st_size != record.bytes:
        raise BundleError(
            f"bundle {directory}: {name} has {status.st_size} bytes, the manifest says "
            f"{record.bytes}; copy or export the bundle again"
        )


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
