"""A directory as a bundle, verified when it is read.

Knows files, sizes and digests. Knows nothing of what the graphs hold.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from paligemma_edge.runtime.contract import FileRecord, Manifest
from paligemma_edge.runtime.errors import BundleError

MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 16 << 20
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
