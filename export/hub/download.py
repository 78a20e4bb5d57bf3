"""A name on the Hugging Face Hub becomes a folder on this disk; a path stays as it is."""

from __future__ import annotations

import os
from pathlib import Path

from paligemma_edge.export.checkpoint.npz_paths import is_npz_name
from paligemma_edge.runtime.hub.download import fetch
from paligemma_edge.runtime.hub.file_set import FileSet
from paligemma_edge.runtime.hub.name import hub_name


def local_path(
    path_or_name: str | os.PathLike[str], files: FileSet, *, from_cache: bool = False
) -> Path:
    """The path itself, or the folder with the files of a Hub repository.

    What exists is a path, and so is what has the name of an npz. HF_HOME, HF_TOKEN and
    HF_HUB_OFFLINE have the same effect as for huggingface_hub.

    Args:
        path_or_name: A local path, or a repository's name: `org/name`, or `org/name@revision` with
            a branch, a tag or a commit.
        files: The files to fetch; those that are in the cache are not fetched again.
        from_cache: Use the cache only, without a network.

    Raises:
        CheckpointError: The files cannot be fetched.
        MissingExtraError: It is no path, and huggingface_hub is not installed.
        OutputError: The files cannot be written to the cache.
    """
    name = None if is_npz_name(Path(path_or_name)) else hub_name(path_or_name)
    return Path(path_or_name) if name is None else fetch(name, files, from_cache=from_cache)
