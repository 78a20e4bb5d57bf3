"""A directory as a bundle, checked when it is read.

Knows files, sizes and digests. Knows nothing of the contents of graphs.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from paligemma_edge.runtime.bundle.links import (
    file_status,
    inner_bundles,
    refuse_linked_folder,
    target_text,
)
from paligemma_edge.runtime.errors import BundleError
from paligemma_edge.runtime.manifest import (
    PIECE_BYTES,
    FileRecord,
    LoraGraphs,
    Manifest,
    Prepacked,
    Variant,
)
from paligemma_edge.runtime.system.file_kind import LFS_POINTER, is_lfs_pointer

MANIFEST = "manifest.json"
_CHECKPOINT_FILE = "config.json"  # of transformers
_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")  # of PEFT
MAX_MANIFEST_BYTES = 16 << 20
_SAFE_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_CHUNK = 256 << 10


@dataclass(frozen=True)
class Bundle:
    """A bundle whose manifest was read and whose model files exist, each with its size.

    Files that no answer needs, such as reports, are checked when they are read: a damaged report
    must not make the model unusable.

    Example:
        >>> bundle = Bundle.open("mix.bundle")
        >>> list(bundle.manifest.variants)
        ['cpu-fp32', 'cpu-int8']
        >>> bundle.verify(bundle.model_files())
    """

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Bundle:
        """Read the manifest and check that the model's files exist and have their sizes.

        Args:
            path: the directory of the bundle.

        Returns:
            The bundle. Digests are not compared yet, see `verify`.

        Raises:
            BundleError: it is not a bundle, has another schema version, or a file of the model is
                missing, of another size, a link that leads elsewhere, or not listed in the
                manifest.
        """
        directory = Path(path)
        bundle = cls(directory, read_manifest(directory))
        with _as_bundle_errors(directory):
            bundle.file(bundle.manifest.tokenizer.file)
            for variant in bundle.manifest.variants.values():
                bundle.check_graphs(variant)
        return bundle

    def file(self, name: str) -> Path:
        """The path of a listed file; BundleError where it is elsewhere or has another size."""
        if name not in self.manifest.files:
            raise BundleError(f"bundle {self.path} lists no file {name!r}; export the bundle again")
        with _as_bundle_errors(self.path):
            check_place(self.path, name)
            self._check_status(name, self.manifest.files[name])
        return self.path / name

    def check_graphs(self, variant: Variant | Prepacked | LoraGraphs) -> None:
        """BundleError unless the folders of these graphs hold the listed files and no others."""
        with _as_bundle_errors(self.path):
            self._check_folders(variant)
            for name in self.variant_files(variant):
                self.file(name)
            self._check_nothing_else(variant)

    def variant_files(self, variant: Variant | Prepacked | LoraGraphs) -> tuple[str, ...]:
        """All that ONNX Runtime may read for a variant: listed files in its graphs' folders."""
        folders = _folders(variant)
        beside = {n for n in self.manifest.files if folders & set(PurePosixPath(n).parents)}
        return tuple(sorted(beside.union(variant.files)))

    def model_files(self) -> tuple[str, ...]:
        """The files that answers need: the tokenizer and those of all variants."""
        variants = map(self.variant_files, self.manifest.variants.values())
        return tuple(sorted({self.manifest.tokenizer.file}.union(*variants)))

    def verify(self, names: Iterable[str]) -> None:
        """Compare the digests of files with the manifest.

        Args:
            names: files of the manifest, such as `model_files()`.

        Raises:
            BundleError: a file is missing or cannot be read, or its sha256 is another.
        """
        present = [name for name in names if self.file(name)]
        with ThreadPoolExecutor() as pool:
            self.compare(dict(zip(present, pool.map(self.digest, present), strict=True)))

    def digest(self, name: str, piece: int | None = None) -> str:
        """The present digest of a file or of a piece of it; BundleError where it cannot be read."""
        with _as_bundle_errors(self.path):
            if piece is None:
                return sha256(self.path / name)
            return piece_digest(self.path / name, piece)

    def compare(self, digests: Mapping[str, str]) -> None:
        """BundleError where digests of files are not those of the manifest."""
        files = self.manifest.files
        self.refuse(name for name, digest in digests.items() if digest != files[name].sha256)

    def refuse(self, changed: Iterable[str]) -> None:
        """BundleError that names the files, if there are any."""
        if names := sorted(changed):
            raise BundleError(
                f"bundle {self.path}: {', '.join(names)} differs from its sha256 in "
                f"{MANIFEST}; the file was changed or damaged, {self._remedy(names)}"
            )

    def _check_folders(self, variant: Variant | Prepacked | LoraGraphs) -> None:
        for graph in variant.graphs.values():
            if graph not in self.manifest.files or "/" not in graph:
                raise BundleError(
                    f"bundle {self.path}: the graph {graph!r} is not listed or not in a folder; "
                    "export the bundle again"
                )

    def _check_nothing_else(self, variant: Variant | Prepacked | LoraGraphs) -> None:
        """ONNX Runtime reads what a graph names, listed or not: so every file must be listed."""
        known = set(map(PurePosixPath, self.manifest.files))
        known.update(*(name.parents for name in tuple(known)))
        for folder in _folders(variant):
            for entry in _entries(self.path / folder):
                if PurePosixPath(entry.relative_to(self.path)) not in known:
                    raise BundleError(
                        f"bundle {self.path}: {str(entry.relative_to(self.path))!r} is not in "
                        f"{MANIFEST}; remove it, or copy or export the bundle again"
                    )

    def _check_status(self, name: str, record: FileRecord) -> None:
        try:
            size = file_status(self.path, name).st_size
        except (FileNotFoundError, NotADirectoryError):
            raise BundleError(
                f"bundle {self.path}: {name} is missing; {self._remedy([name])}"
            ) from None
        if size != record.bytes and is_lfs_pointer(self.path / name):
            raise BundleError(f"bundle {self.path}: {name} {LFS_POINTER}")
        if size != record.bytes:
            raise BundleError(
                f"bundle {self.path}: {name} has {size} bytes, the manifest says "
                f"{record.bytes}; {self._remedy([name])}"
            )

    def _remedy(self, damaged: Iterable[str]) -> str:
        again = "copy or export the bundle again"
        if not set(damaged).isdisjoint((*self.model_files(), *self.manifest.licenses)):
            return again
        for variant, prepacked in self.manifest.prepacked.items():
            if not set(damaged).isdisjoint(self.variant_files(prepacked)):
                return f"run `paligemma-edge prepack {self.path} --variant {variant}` to mend it"
        if any(name.startswith(("lora_graphs/", "adapters/")) for name in damaged):
            return "add the adapter again with `paligemma-edge adapter --overwrite`"
        return f"run `paligemma-edge verify` to write it anew, or {again}"


def sha256(path: Path, progress: Callable[[int], None] | None = None) -> str:
    """Digest of a file as lower-case hex. `progress` is called with the bytes of each chunk."""
    with path.open("rb", buffering=0) as file:
        return _digest(file, None, progress)


def piece_digest(path: Path, piece: int) -> str:
    """Digest of piece number `piece` of a file."""
    with path.open("rb", buffering=0) as file:
        file.seek(piece * PIECE_BYTES)
        return _digest(file, PIECE_BYTES, None)


def _digest(file: io.FileIO, limit: int | None, progress: Callable[[int], None] | None) -> str:
    """Digest of the rest of a file, at most `limit` bytes of it."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(_CHUNK))
    left = math.inf if limit is None else limit
    while left and (count := file.readinto(buffer[: int(min(left, _CHUNK))])):
        digest.update(buffer[:count])
        left -= count
        if progress:
            progress(count)
    return digest.hexdigest()


def check_place(directory: Path, name: str) -> None:
    """Refuse a name that leads out of the bundle, by itself or through a link."""
    _check_name(directory, name)
    refuse_linked_folder(directory, name)


def _check_name(directory: Path, name: str) -> None:
    parts = PurePosixPath(name).parts
    if not parts or "/".join(parts) != name or not all(map(_SAFE_PART.fullmatch, parts)):
        raise BundleError(f"bundle {directory} lists the file {name!r}, which is not a plain path")


def _folders(variant: Variant | Prepacked | LoraGraphs) -> set[PurePosixPath]:
    return {PurePosixPath(graph).parent for graph in variant.graphs.values()}


def _entries(folder: Path) -> Iterator[Path]:
    """All paths below a folder; links are listed and not followed."""
    with os.scandir(folder) as entries:
        for entry in entries:
            yield Path(entry.path)
            if entry.is_dir(follow_symlinks=False):
                yield from _entries(Path(entry.path))


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a bundle, every name in it checked; BundleError where it is none."""
    with _as_bundle_errors(directory):
        manifest = Manifest.from_json(_manifest_data(directory))
        for name in manifest.files:
            _check_name(directory, name)
    return manifest


def _manifest_data(directory: Path) -> object:
    path = directory / MANIFEST
    if not directory.is_dir():
        raise BundleError(
            f"bundle {directory} {_absence(directory)}; make one with `paligemma-edge export`"
        )
    try:
        size = file_status(directory, MANIFEST).st_size
    except FileNotFoundError:
        raise BundleError(f"{directory} has no {MANIFEST}, so it is {_other(directory)}") from None
    if size > MAX_MANIFEST_BYTES:
        raise BundleError(f"{path} is larger than {MAX_MANIFEST_BYTES} bytes; it is not a manifest")
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        problem = "is not JSON; copy or export the bundle again"
        raise BundleError(f"{path} {LFS_POINTER if is_lfs_pointer(path) else problem}") from None


def _other(directory: Path) -> str:
    """What a folder without a manifest is, and what to do."""
    if (directory / _CHECKPOINT_FILE).is_file():
        return "a checkpoint; make a bundle with `paligemma-edge export`"
    if any((directory / name).is_file() for name in _ADAPTER_FILES):
        return (
            "an adapter as PEFT saves it; export its base with `--adapter`, or add it to a bundle "
            "with `paligemma-edge adapter`"
        )
    if inner := inner_bundles(directory, MANIFEST):
        return f"not a bundle itself; give the folder in it: {inner}"
    return "not a bundle; make a bundle with `paligemma-edge export`"


def _absence(directory: Path) -> str:
    """Why a path is not a folder."""
    if directory.exists():
        return "is not a directory"
    if directory.is_symlink():
        return f"is a link to {target_text(directory)}, where nothing is"
    return "does not exist"


@contextlib.contextmanager
def _as_bundle_errors(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BundleError(
            f"bundle {directory}: cannot read {error.filename or 'it'}: "
            f"{error.strerror or error}; check the path and its permissions"
        ) from None
