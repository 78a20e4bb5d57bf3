"""A repository on the Hugging Face Hub becomes a folder on this disk.

Downloads, cache, tokens and progress bars are huggingface_hub's: HF_HOME, HF_TOKEN and
HF_HUB_OFFLINE have the same effect as there. Opens none of the files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from paligemma_edge.runtime.hub.errors import incomplete, raise_fetch_error
from paligemma_edge.runtime.hub.file_set import FileSet
from paligemma_edge.runtime.hub.name import HubName, hub_utils


def fetch(name: HubName, files: FileSet, *, from_cache: bool = False) -> Path:
    """The folder with a repository's files; those that are in the cache are not fetched again.

    With `from_cache` without a network. The error of `files` where they cannot be had, OutputError
    where they cannot be written to the cache.
    """
    from huggingface_hub import snapshot_download

    try:
        folder = Path(
            snapshot_download(
                name.repository,
                revision=name.revision,
                allow_patterns=list(files.files),
                local_files_only=from_cache,
                tqdm_class=_terminal_bar(name),
            )
        )
    except Exception as error:  # of HTTP, of the disk, of helpers in other languages
        raise_fetch_error(error, name, files, from_cache=from_cache)
    if not any((folder / one).exists() for one in files.needed):
        raise incomplete(name, files, folder)
    return folder


def cached_folder(name: HubName, file: str) -> Path | None:
    """The folder of the cache where a file of a repository is; None where it is not there."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name.repository, file, revision=name.revision)
    return Path(found).parent if isinstance(found, str) else None


def _terminal_bar(name: HubName) -> Any:  # noqa: ANN401 - it declares no exports
    """huggingface_hub's bar, which by default is drawn in a log file too."""
    bar = hub_utils(str(name)).tqdm

    class TerminalBar(bar):  # type: ignore[misc,valid-type]
        def __init__(self, *arguments: object, **options: object) -> None:
            # For tqdm None means: only on a terminal.
            super().__init__(*arguments, **{"disable": None, **options})

    return TerminalBar
