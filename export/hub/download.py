"""A name on the Hugging Face Hub becomes a folder on this disk.

Knows what is a path and what is a name. Downloads, cache, tokens and progress bars are
huggingface_hub's. Opens none of the files.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

from paligemma_edge.export.checkpoint.npz_paths import is_npz_name
from paligemma_edge.export.hub.errors import incomplete, raise_fetch_error
from paligemma_edge.export.hub.file_sets import FileSet
from paligemma_edge.runtime.errors import OptionError

DEFAULT_REVISION = "main"


def local_path(
    path_or_name: str | os.PathLike[str],
    files: FileSet,
    *,
    revision: str | None = None,
    from_cache: bool = False,
) -> Path:
    """The path itself, or the folder with the files of a Hub repository `org/name`.

    What exists is a path, and so is what has the name of an npz. HF_HOME, HF_TOKEN and
    HF_HUB_OFFLINE have the same effect as for huggingface_hub.

    Args:
        path_or_name: A local path, or a repository's name.
        files: The files to fetch; those that are in the cache are not fetched again.
        revision: Branch, tag or commit; default: the main branch.
        from_cache: Use the cache only, without a network.

    Raises:
        CheckpointError: The files cannot be fetched.
        OptionError: A revision is given for a path.
        OutputError: The files cannot be written to the cache.
    """
    text = os.fspath(path_or_name)
    if not _is_hub_name(text):
        if revision is not None:
            raise OptionError(
                f"revision is {revision!r}, and {text} is not a name on the Hub, as org/name; "
                "leave --revision out"
            )
        return Path(path_or_name)
    folder = _fetch(text, files, revision or DEFAULT_REVISION, from_cache)
    if not any((folder / name).exists() for name in files.needed):
        raise incomplete(text, files, folder)
    return folder


def _is_hub_name(text: str) -> bool:
    if os.path.lexists(text) or text.count("/") != 1 or is_npz_name(Path(text)):
        return False
    utils = _utils()
    try:
        utils.validate_repo_id(text)
    except utils.HFValidationError:
        return False
    return True


def _utils() -> Any:  # noqa: ANN401 - it declares no exports
    return importlib.import_module("huggingface_hub.utils")


def _fetch(name: str, files: FileSet, revision: str, from_cache: bool) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=list(files.files),
                local_files_only=from_cache,
                tqdm_class=_terminal_bar(),
            )
        )
    except Exception as error:  # of HTTP, of the disk, of helpers in other languages
        raise_fetch_error(error, name, revision, from_cache)


def _terminal_bar() -> Any:  # noqa: ANN401 - as above
    """huggingface_hub's bar, which by default is drawn in a log file too."""
    bar = _utils().tqdm

    class TerminalBar(bar):  # type: ignore[misc,valid-type]
        def __init__(self, *arguments: object, **options: object) -> None:
            # For tqdm None means: only on a terminal.
            super().__init__(*arguments, **{"disable": None, **options})

    return TerminalBar
