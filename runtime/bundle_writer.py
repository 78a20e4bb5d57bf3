"""A bundle is written whole or not at all: beside its place, flushed, then moved there.

Knows files and the order in which they reach the disk. Knows nothing of what they hold.
Who changes a directory holds its lock: a new bundle while it is written, a bundle while it is
amended or replaced, and the parent while names in it change.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from paligemma_edge.runtime import disk
from paligemma_edge.runtime.bundle import MANIFEST, Bundle, check_place, sha256
from paligemma_edge.runtime.contract import FileRecord, Manifest
from paligemma_edge.runtime.errors import BundleError, OutputError

_NEARLY_FULL = 16 << 20  # bytes free
_STAGED = ".amend-"


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
                f"the bundle needs {_readable(size * 1.05)}, {self.target.parent} has "
                f"{_readable(free)} free; free some or choose another disk",
            )

    def finish(self, manifest: Manifest, progress: Callable[[int], None] | None = None) -> Manifest:
        """Record every file, flush all of it to disk, write the manifest last."""
        records = {name: _record(self.directory / name, progress) for name in self.files()}
        complete = dataclasses.replace(manifest, files=records)
        _put(self.directory, {MANIFEST: _to_bytes(complete)})
        return complete


@contextlib.contextmanager
def new_bundle(
    target: str | os.PathLike[str], *, overwrite: bool = False
) -> Iterator[BundleWriter]:
    """Write a bundle whole or not at all: nothing is left behind when the block fails.

    An existing bundle is kept unless `overwrite`, and then until the new one is complete.
    """
    final = Path(os.path.abspath(target))  # noqa: PTH100 - resolve() would follow a link
    with _as_output_errors(final):
        _check_target(final, overwrite)
        with _parents(final), contextlib.ExitStack() as stack:
            staging = _begin(final, overwrite, stack)
            with _as_output_errors(final):  # finds the reason before the disk is tidied
                yield BundleWriter(staging, final)
                if not (staging / MANIFEST).is_file():
                    raise AssertionError("the writer was not finished")
                disk.sync_directories(staging)
                _commit(staging, final, overwrite)


def amend_bundle(
    bundle: Bundle, files: Mapping[str, bytes], changes: Callable[[Manifest], Manifest]
) -> Bundle:
    """Add or replace small files that no answer needs, and change the manifest as it is now.

    Whatever stops this, the bundle stays usable: at worst new files are there that the manifest,
    replaced last, does not know, which amending again repairs.
    """
    with _as_output_errors(bundle.path), disk.locked(bundle.path):
        for stray in bundle.path.glob(f"{_STAGED}*"):
            disk.remove_tree(stray)
        now = Bundle.open(bundle.path)
        _check_same_model(bundle, now)
        records = {name: _record_of(data) for name, data in files.items()}
        manifest = dataclasses.replace(
            changes(now.manifest), files={**now.manifest.files, **records}
        )
        _put(bundle.path, {**files, MANIFEST: _to_bytes(manifest)})
    return Bundle(bundle.path, manifest)


def _begin(final: Path, overwrite: bool, stack: contextlib.ExitStack) -> Path:
    """Make the hidden directory; the stack holds its lock and removes it at the end."""
    staging = final.with_name(_staging_prefix(final) + uuid.uuid4().hex)
    with disk.locked(final.parent):
        _recover(final)
        _check_target(final, overwrite)
        stack.callback(disk.remove_tree, staging)
        staging.mkdir()
        stack.enter_context(disk.locked(staging))
    return staging


def _commit(staging: Path, final: Path, overwrite: bool) -> None:
    """Give the new bundle its name; one that was replaced is then at `staging`."""
    with disk.locked(final.parent):
        _check_target(final, overwrite)  # one may have appeared meanwhile
        if os.path.lexists(final):
            with disk.locked(final):
                disk.exchange(staging, final)
        else:
            disk.rename_new(staging, final)
        disk.sync(final.parent)


def _recover(final: Path) -> None:
    """Tidy up after exports of the same bundle that were killed, not after one that runs."""
    for path in list(final.parent.iterdir()):
        if path.name.startswith(disk.previous_prefix(final)):
            if not os.path.lexists(final):
                path.rename(final)
            elif (final / MANIFEST).is_file():
                disk.remove_tree(path)
        elif path.name.startswith(_staging_prefix(final)) and not disk.is_locked(path):
            disk.remove_tree(path)


def _staging_prefix(final: Path) -> str:
    return f".{final.name}.partial-"


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


def _check_same_model(before: Bundle, now: Bundle) -> None:
    files = before.manifest.files
    if any(now.manifest.files.get(name) != files[name] for name in before.model_files()):
        raise BundleError(f"bundle {now.path} was replaced meanwhile; verify it again")


@contextlib.contextmanager
def _parents(final: Path) -> Iterator[None]:
    """Make the folders above; those that were not there go again when the block fails."""
    missing = [folder for folder in final.parents if not folder.exists()]
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for folder in missing:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def _record(path: Path, progress: Callable[[int], None] | None) -> FileRecord:
    digest = sha256(path, progress)
    disk.sync(path)
    return FileRecord(bytes=path.stat().st_size, sha256=digest)


def _record_of(data: bytes) -> FileRecord:
    return FileRecord(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def _to_bytes(manifest: Manifest) -> bytes:
    return (json.dumps(manifest.to_json(), indent=2, ensure_ascii=False) + "\n").encode()


def _put(directory: Path, contents: Mapping[str, bytes]) -> None:
    """Replace files in their order, once all of them are on the disk, so that space is no risk."""
    staged = directory / (_STAGED + uuid.uuid4().hex)
    try:
        staged.mkdir()
        for number, (name, data) in enumerate(contents.items()):
            check_place(directory, name)
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            disk.write_synced(staged / str(number), data)
        for number, name in enumerate(contents):
            (staged / str(number)).replace(directory / name)
            disk.sync((directory / name).parent)
    finally:
        disk.remove_tree(staged)


@contextlib.contextmanager
def _as_output_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        number = error.errno or _guess_errno(target)
        raise OutputError(
            number, f"cannot write {target}: {os.strerror(number)}; nothing was changed"
        ) from None


def _guess_errno(target: Path) -> int:
    """numpy's tofile says how much it wrote, but not what stopped it."""
    with contextlib.suppress(OSError):
        if shutil.disk_usage(target.parent).free < _NEARLY_FULL:
            return errno.ENOSPC
    return errno.EIO


def _readable(size: float) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size / 1e3:.1f} kB"
