"""The manifest of a bundle without one of its folders, and without what was made from it.

Knows which entries of the manifest depend on which. Knows nothing of the disk.
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

_REPORTS = ("fidelity", "parity")  # folders of files that are named after a variant
_Graphs = TypeVar("_Graphs", Prepacked, LoraGraphs)


def without_folder(bundle: Bundle, folder: PurePosixPath, *, overwrite: bool) -> Manifest:
    """The manifest without a folder and without what was made from it.

    OutputError where the folder exists and `overwrite` is not given, or where the rest of the
    bundle needs it.
    """
    manifest = bundle.manifest
    if not overwrite and any(_is_in({folder}, name) for name in manifest.files):
        raise OutputError(
            errno.EEXIST,
            f"{bundle.path / folder} exists and is kept; give --overwrite or another name",
        )
    variants = {k: v for k, v in manifest.variants.items() if not _any_in({folder}, v.graphs)}
    without = dataclasses.replace(
        manifest,
        variants=variants,
        default_variant=manifest.default_variant if manifest.default_variant in variants else None,
        prepacked=_kept(manifest.prepacked, variants, folder),
        lora_graphs=_kept(manifest.lora_graphs, variants, folder),
        adapters=_kept_adapters(manifest.adapters, variants, folder),
    )
    removed = {folder, *_made_from(manifest) - _made_from(without)}
    lost = set(manifest.variants) - set(variants)
    files = {
        name: record
        for name, record in manifest.files.items()
        if not _is_in(removed, name) and not _is_report_of(lost, name)
    }
    without = dataclasses.replace(without, files=files)
    _check_complete(bundle, without, folder)
    return without


def _kept(
    derived: Mapping[str, _Graphs], variants: Collection[str], folder: PurePosixPath
) -> dict[str, _Graphs]:
    """Entries whose variants stay and whose graphs are in other folders."""
    return {
        name: entry
        for name, entry in derived.items()
        if name in variants and not _any_in({folder}, entry.graphs)
    }


def _kept_adapters(
    adapters: Mapping[str, LoraInfo], variants: Collection[str], folder: PurePosixPath
) -> dict[str, LoraInfo]:
    """Adapters with their files for variants that stay; an adapter without files is dropped."""
    kept = {}
    for name, config in adapters.items():
        files = {k: v for k, v in config.files.items() if k in variants}
        if files and not _any_in({folder}, files):
            kept[name] = dataclasses.replace(config, files=files)
    return kept


def _made_from(manifest: Manifest) -> set[PurePosixPath]:
    """Folders and files of what was made from variants."""
    derived: list[Prepacked | LoraGraphs] = [
        *manifest.prepacked.values(),
        *manifest.lora_graphs.values(),
    ]
    folders = {PurePosixPath(graph).parent for entry in derived for graph in entry.graphs.values()}
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
    return any(_is_in(folders, file) for file in files.values())


def _is_in(folders: Collection[PurePosixPath], name: str) -> bool:
    path = PurePosixPath(name)
    return any(folder == path or folder in path.parents for folder in folders)


def _is_report_of(variants: Collection[str], name: str) -> bool:
    """Whether a file is a report of one of these variants."""
    path = PurePosixPath(name)
    return str(path.parent) in _REPORTS and path.stem in variants
