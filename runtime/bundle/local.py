"""A bundle to read, by its path or by its name on the Hugging Face Hub.

One that the Hub's cache holds whole is opened without a network, so that a device starts without
one, and with the same model. Bundles are written by their path alone.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from paligemma_edge.runtime.bundle.bundle import MANIFEST, Bundle, read_manifest
from paligemma_edge.runtime.errors import BundleError
from paligemma_edge.runtime.hub.download import cached_folder, fetch
from paligemma_edge.runtime.hub.file_set import FileSet
from paligemma_edge.runtime.hub.name import HubName, hub_name


def open_bundle(path_or_name: str | os.PathLike[str]) -> Bundle:
    """Open a bundle, fetching it from the Hub where it is a name there and not in the cache.

    Args:
        path_or_name: the folder of the bundle, or a repository with a bundle at its top, `org/name`
            or `org/name@revision` with a branch, a tag or a commit. What exists is a path.

    Returns:
        The bundle; its digests are not compared yet.

    Raises:
        BundleError: it is not a bundle, or is neither here nor can be fetched.
        MissingExtraError: it is no path, and huggingface_hub is not installed.
        OutputError: the files cannot be written to the cache.

    Example:
        >>> open_bundle("me/my-paligemma@v2").path
        PosixPath('/home/me/.cache/huggingface/hub/models--me--my-paligemma/snapshots/4f0c...')
    """
    name = hub_name(path_or_name)
    return Bundle.open(path_or_name if name is None else _cached(name) or _fetched(name))


def _cached(name: HubName) -> Path | None:
    """The folder in the cache, if every file of the bundle is there."""
    folder = cached_folder(name, MANIFEST)
    if folder is None:
        return None
    files = read_manifest(folder).files
    return folder if all((folder / file).exists() for file in files) else None


def _fetched(name: HubName) -> Path:
    """First the manifest, so that nothing is fetched that is no bundle or no part of it."""
    folder = fetch(name, _wanted((MANIFEST,)))
    files = (MANIFEST, *read_manifest(folder).files)
    # The manifest's own commit: a branch may have moved meanwhile.
    return fetch(replace(name, revision=folder.name), _wanted(files))


def _wanted(files: tuple[str, ...]) -> FileSet:
    return FileSet(
        "a bundle",
        files,
        (MANIFEST,),
        "export it, if it is a checkpoint, or download it and give the folder in it",
        BundleError,
    )
