"""What a manifest says of a bundle without one of its folders: a variant takes much with it.

Knows which lines of the manifest were made from which. Knows nothing of the disk.
"""

from __future__ import annotations

import dataclasses
import errno
from collections.abc import Collection, Mapping
from pathlib import PurePosixPath
from typing import TypeVar

from paligemma_edge.runtime.bundle.bundle import Bundle
from paligemma_edge.runtime.errors import OutputError
from paligemma_edge.runtime.manifest import LoraGraphs, LoraInfo, Manifest, Prepacked

_REPORTS = ("fidelity", "parity")  # folders of files that bear the name of a variant
_Made = TypeVar("_Made", Prepacked, LoraGraphs)


def without_folder(bundle: Bundle, folder: PurePosixPath, *, overwrite: bool) -> Manifest:
    """The manifest as if a folder were not there, nor what was made from it.

    OutputError where it is there and not to be overwritten, or the rest of the bundle needs it.
    """
    manifest = bundle.manifest
    if not overwrite and any(_lies_in({folder}, name) for name in manifest.files):
        raise OutputError(
            errno.EEXIST,
            f"{bundle.path / folder} exists and is kept; give --overwrite or another name",
        )
    variants = {k: v for k, v in manifest.variants.items() if not _any_in({folder}, v.graphs)}
    without = dataclasses.replace(
        manifest,
        variants=variants,
        prepacked=_kept(manifest.prepacked, variants, folder),
        lora_graphs=_kept(manifest.lora_graphs, variants, folder),
        adapters=_kept_adapters(manifest.adapters, variants, folder),
    )
    gone = {folder, *_made_from(manifest) - _made_from(without)}
    lost = set(manifest.variants) - set(variants)
    files = {
        name: record
        for name, record in manifest.files.items()
        if not _lies_in(gone, name) and not _tells_of(lost, name)
    }
    without = dataclasses.replace(without, files=files)
    _check_complete(bundle, without, folder)
    return without


def _kept(
    made: Mapping[str, _Made], variants: Collection[str], folder: PurePosixPath
) -> dict[str, _Made]:
    """What was made from variants that stay, and lies elsewhere."""
    return {
        name: found
        for name, found in made.items()
        if name in variants and not _any_in({folder}, found.graphs)
    }


def _kept_adapters(
    adapters: Mapping[str, LoraInfo], variants: Collection[str], folder: PurePosixPath
) -> dict[str, LoraInfo]:
    """Adapters with their files for the variants that stay; without any, an adapter goes."""
    kept = {}
    for name, config in adapters.items():
        files = {k: v for k, v in config.files.items() if k in variants}
        if files and not _any_in({folder}, files):
            kept[name] = dataclasses.replace(config, files=files)
    return kept


def _made_from(manifest: Manifest) -> set[PurePosixPath]:
    """Folders and files of what was made from variants."""
    made: list[Prepacked | LoraGraphs] = [
        *manifest.prepacked.values(),
        *manifest.lora_graphs.values(),
    ]
    folders = {PurePosixPath(graph).parent for found in made for graph in found.graphs.values()}
    return folders | {
        PurePosixPath(file)
        for config in manifest.adapters.values()
        for file in config.files.values()
    }


def _check_complete(bundle: Bundle, without: Manifest, folder: PurePosixPath) -> None:
    needed = {without.tokenizer.file}.union(*(v.files for v in without.variants.values()))
    lost = sorted(needed - set(without.files))
    if lost:
        raise OutputError(
            errno.EEXIST,
            f"{bundle.path / folder} is kept, since the rest of the bundle needs {lost[0]}; "
            "give another name",
        )


def _any_in(folders: Collection[PurePosixPath], files: Mapping[str, str]) -> bool:
    return any(_lies_in(folders, file) for file in files.values())


def _lies_in(folders: Collection[PurePosixPath], name: str) -> bool:
    path = PurePosixPath(name)
    return any(folder == path or folder in path.parents for folder in folders)


def _tells_of(variants: Collection[str], name: str) -> bool:
    """Whether a file is a report, which would be wrong of another variant of that name."""
    path = PurePosixPath(name)
    return str(path.parent) in _REPORTS and path.stem in variants
