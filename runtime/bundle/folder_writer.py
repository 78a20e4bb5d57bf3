"""One folder of a bundle is added, replaced or removed atomically.

Knows how files reach the disk and the manifest. Knows nothing of their contents.
The long writing is done in a hidden directory of the bundle, whose lock the writer holds; the
bundle's own lock is held only while the folder and the manifest change.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from paligemma_edge.runtime.bundle import staging
from paligemma_edge.runtime.bundle.bundle import MANIFEST, Bundle, check_place
from paligemma_edge.runtime.bundle.removal import without_folder
from paligemma_edge.runtime.errors import BundleError
from paligemma_edge.runtime.manifest import Manifest
from paligemma_edge.runtime.system import disk


@dataclass(frozen=True)
class FolderWriter(staging.StagedFiles):
    """A folder of a bundle that is being written. Names are relative to the bundle."""

    bundle: Bundle
    folder: PurePosixPath
    made_from: Collection[str]
    overwrite: bool

    def path(self, name: str) -> Path:
        """The path to write a file of the folder to; its directory is created."""
        self._check(name)
        return super().path(name)

    def files(self) -> list[str]:
        """Names of the files written so far."""
        return [name for name in super().files() if not name.startswith(".")]

    def finish(
        self,
        changes: Callable[[Manifest], Manifest],
        progress: Callable[[int], None] | None = None,
        *,
        extra: Mapping[str, bytes] = {},
    ) -> Manifest:
        """Record and flush every file, put the folder in place, then the manifest.

        `changes` is applied to the bundle's manifest at that time, without the folder that is
        replaced. `extra` are small files of other folders that no answer needs.
        """
        for name in self.files():
            self._check(name)
        records = self.records(progress)
        records |= {name: staging.record_of(data) for name, data in extra.items()}
        disk.sync_directories(self.directory)
        with disk.locked(self.bundle.path):
            now = Bundle.open(self.bundle.path)
            staging.check_same_model(self.bundle, now, self.made_from)
            without = without_folder(now, self.folder, overwrite=self.overwrite)
            complete = changes(without)
            complete = dataclasses.replace(complete, files={**without.files, **records})
            _Replacement(now, self.folder, self.directory).make(without, complete, extra)
        return complete

    def _check(self, name: str) -> None:
        check_place(self.bundle.path, name)
        if self.folder not in PurePosixPath(name).parents:
            raise BundleError(f"{name} is not in {self.folder}, the folder that is written")


@contextlib.contextmanager
def extend_bundle(
    bundle: Bundle, folder: str, *, overwrite: bool = False, made_from: Iterable[str] = ()
) -> Iterator[FolderWriter]:
    """Add one folder of files to a bundle atomically: whatever stops it, the bundle stays usable.

    A folder that the manifest lists is kept unless `overwrite`, and then until the new one is
    complete. What was made from the old one is removed with it: prepacked graphs, reports, LoRA
    graphs, and the adapters' files for it. `made_from` are the files that the new ones come from,
    by default all that answers need outside the folder; it is an error if one of them is replaced
    before the end.
    """
    target = bundle.path / folder
    with staging.as_output_errors(target), contextlib.ExitStack() as stack:
        check_place(bundle.path, f"{folder}/{MANIFEST}")
        inner = PurePosixPath(folder)
        without_folder(bundle, inner, overwrite=overwrite)
        staged = _begin(bundle.path, stack)
        others = (n for n in bundle.model_files() if inner not in PurePosixPath(n).parents)
        sources = tuple(made_from) or tuple(others)
        with staging.as_output_errors(target):  # looks at the disk before it is cleaned up
            writer = FolderWriter(staged, target, bundle, inner, sources, overwrite)
            yield writer
            if writer.files():
                raise AssertionError("the writer was not finished")


def remove_folder(bundle: Bundle, folder: str) -> Manifest:
    """Remove a folder of a bundle and what was made from it, the manifest first."""
    target = bundle.path / folder
    with staging.as_output_errors(target), disk.locked(bundle.path):
        check_place(bundle.path, f"{folder}/{MANIFEST}")
        staging.remove_strays(bundle.path)
        now = Bundle.open(bundle.path)
        without = without_folder(now, PurePosixPath(folder), overwrite=True)
        staging.put(bundle.path, {MANIFEST: staging.to_bytes(without)})
        _remove_unlisted(now, without)
        disk.remove_tree(target)
    return without


@dataclass(frozen=True)
class _Replacement:
    """The renames that change a folder; the caller holds the bundle's lock."""

    bundle: Bundle  # as it is
    folder: PurePosixPath
    directory: Path  # where the new folder is, and the old one is moved to

    def make(self, without: Manifest, complete: Manifest, extra: Mapping[str, bytes]) -> None:
        """At any moment the manifest lists what is there. A failure restores everything."""
        fewer, again = (self._draft(MANIFEST, staging.to_bytes(without)) for _ in range(2))
        last = self._draft(MANIFEST, staging.to_bytes(complete))
        drafts = [(name, self._draft(name, data)) for name, data in extra.items()]
        restore = {name: self._restorer(name) for name in (MANIFEST, *extra)}
        with contextlib.ExitStack() as undo:
            undo.callback(restore[MANIFEST])
            self._move(fewer, MANIFEST)
            self._swap(undo)
            for name, draft in drafts:
                undo.callback(restore[name])
                self._move(draft, name)
            undo.callback(self._move, again, MANIFEST)
            self._move(last, MANIFEST)
            undo.pop_all()
        _remove_unlisted(self.bundle, complete)

    def _restorer(self, name: str) -> Callable[[], None]:
        """A function that restores a file as it is now; a copy is written to the disk at once."""
        path = self.bundle.path / name
        if not os.path.lexists(path):
            return functools.partial(path.unlink, missing_ok=True)
        return functools.partial(self._move, self._draft(name, path.read_bytes()), name)

    def _swap(self, undo: contextlib.ExitStack) -> None:
        target, old = self.bundle.path / self.folder, self.directory / ".replaced"
        target.parent.mkdir(parents=True, exist_ok=True)
        disk.sync(self.bundle.path)
        if os.path.lexists(target):
            undo.callback(_rename_back, old, target)
            target.rename(old)
        new = self.directory / self.folder
        undo.callback(_rename_back, target, new)
        disk.rename_new(new, target)
        disk.sync(target.parent)

    def _draft(self, name: str, data: bytes) -> Path:
        return staging.draft(self.directory, self.bundle.path, name, data)

    def _move(self, draft: Path, name: str) -> None:
        staging.move(draft, self.bundle.path, name)


def _begin(bundle: Path, stack: contextlib.ExitStack) -> Path:
    """Create the hidden directory; the stack holds its lock and removes it at the end."""
    staged = bundle / staging.staging_name()
    with disk.locked(bundle):
        staging.remove_strays(bundle)
        stack.callback(disk.remove_tree, staged)
        staged.mkdir()
        stack.enter_context(disk.locked(staged))
    return staged


def _remove_unlisted(before: Bundle, now: Manifest) -> None:
    """Remove files that the manifest no longer lists, and folders that this leaves empty."""
    for name in set(before.manifest.files) - set(now.files):
        with contextlib.suppress(OSError):
            (before.path / name).unlink()
            for folder in PurePosixPath(name).parents[:-1]:
                (before.path / folder).rmdir()


def _rename_back(source: Path, target: Path) -> None:
    if os.path.lexists(source) and not os.path.lexists(target):
        source.rename(target)
