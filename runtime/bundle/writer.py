"""A bundle is written atomically: beside its final path, flushed, then renamed.

Knows files and the order in which they reach the disk. Knows nothing of their contents.
A process that changes a directory holds its lock: of a new bundle while it is written, of a bundle
while it is amended or replaced, and of the parent while names in it change.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from paligemma_edge.runtime.bundle.bundle import MANIFEST, Bundle
from paligemma_edge.runtime.bundle.links import target_text
from paligemma_edge.runtime.bundle.staging import (
    StagedFiles,
    as_output_errors,
    check_same_model,
    put,
    record_of,
    remove_strays,
    to_bytes,
)
from paligemma_edge.runtime.errors import OutputError
from paligemma_edge.runtime.manifest import Manifest
from paligemma_edge.runtime.system import disk


class BundleWriter(StagedFiles):
    """A bundle that is being written, in a hidden directory beside its final path."""

    def finish(self, manifest: Manifest, progress: Callable[[int], None] | None = None) -> Manifest:
        """Record every file, flush all of it to disk, write the manifest last."""
        complete = dataclasses.replace(manifest, files=self.records(progress))
        put(self.directory, {MANIFEST: to_bytes(complete)})
        return complete


@contextlib.contextmanager
def new_bundle(
    target: str | os.PathLike[str], *, overwrite: bool = False
) -> Iterator[BundleWriter]:
    """Write a bundle atomically: when the block fails, nothing is left of it.

    An existing bundle is kept unless `overwrite`, and then until the new one is complete.
    """
    final = Path(os.path.abspath(target))  # noqa: PTH100 - resolve() would follow a link
    with as_output_errors(final):
        _check_target(final, overwrite)
        with _parents(final), contextlib.ExitStack() as stack:
            staging = _begin(final, overwrite, stack)
            with as_output_errors(final):  # looks at the disk before it is cleaned up
                yield BundleWriter(staging, final)
                if not (staging / MANIFEST).is_file():
                    raise AssertionError("the writer was not finished")
                disk.sync_directories(staging)
                _commit(staging, final, overwrite)


def amend_bundle(
    bundle: Bundle, files: Mapping[str, bytes], changes: Callable[[Manifest], Manifest]
) -> Bundle:
    """Add or replace small files that no answer needs, and change the manifest as it is now.

    Whatever stops this, the bundle stays usable: at worst there are new files that the manifest,
    replaced last, does not list, which amending again repairs.
    """
    with as_output_errors(bundle.path), disk.locked(bundle.path):
        remove_strays(bundle.path)
        now = Bundle.open(bundle.path)
        check_same_model(bundle, now, bundle.model_files())
        records = {name: record_of(data) for name, data in files.items()}
        manifest = dataclasses.replace(
            changes(now.manifest), files={**now.manifest.files, **records}
        )
        put(bundle.path, {**files, MANIFEST: to_bytes(manifest)})
    return Bundle(bundle.path, manifest)


def _begin(final: Path, overwrite: bool, stack: contextlib.ExitStack) -> Path:
    """Create the hidden directory; the stack holds its lock and removes it at the end."""
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
    """Clean up after exports of the same bundle that were killed, not after a running one."""
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
    if final.is_symlink():
        raise OutputError(
            errno.EEXIST,
            f"{final} is a link to {target_text(final)} and is kept; give the "
            "path that it leads to, or another name",
        )
    if not (final / MANIFEST).is_file():
        raise OutputError(
            errno.EEXIST, f"{final} is not a bundle and is kept; remove it or give another name"
        )


@contextlib.contextmanager
def _parents(final: Path) -> Iterator[None]:
    """Create the parent folders; remove the new ones again when the block fails."""
    missing = [folder for folder in final.parents if not folder.exists()]
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for folder in missing:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise
