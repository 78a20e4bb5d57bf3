"""A checkpoint, an adapter or a tokenizer on the Hugging Face Hub, as a folder on this disk.

Knows which files of a repository are read here, and says in a line why they cannot be had. How
they are fetched and kept, tokens and bars are huggingface_hub's. Opens none of the files.
"""

from __future__ import annotations

import errno
import importlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from paligemma_edge.export.checkpoint.npz_paths import is_npz_name
from paligemma_edge.runtime.errors import CheckpointError, OptionError, OutputError

DEFAULT_REVISION = "main"

# Where huggingface_hub keeps a repository: models--ORG--NAME/snapshots/COMMIT.
_SNAPSHOT = re.compile(r".*/models--(?P<org>.+?)--(?P<name>.+)/snapshots/(?P<commit>[0-9a-f]{40})")
_LONGEST_REASON = 200


@dataclass(frozen=True)
class Wanted:
    """What is fetched of a repository."""

    called: str
    files: tuple[str, ...]  # names, or patterns with a *
    needed: tuple[str, ...]  # one of them has to be there
    advice: str  # where none is


_TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json", "added_tokens.json")
# What the exporter reads, and beside it what transformers reads in `verify`. Pickles, the npz of
# JAX and weights for other programs are left where they are.
CHECKPOINT = Wanted(
    "a PaliGemma as transformers saves it",
    (
        "config.json",
        "model*.safetensors",
        "model.safetensors.index.json",
        *_TOKENIZER_FILES,
        *("preprocessor_config.json", "processor_config.json"),
        *("generation_config.json", "tokenizer_config.json", "special_tokens_map.json"),
    ),
    ("model.safetensors", "model.safetensors.index.json"),
    "give a LoRA adapter by --adapter, beside its base, and an npz by its path",
)
ADAPTER = Wanted(
    "a LoRA adapter as PEFT saves it",
    ("adapter_config.json", "adapter_model.safetensors"),
    ("adapter_model.safetensors",),
    "load it with peft and save it again",
)
TOKENIZER = Wanted(
    "a PaliGemma's tokenizer", _TOKENIZER_FILES, _TOKENIZER_FILES[:2], "give its path"
)


def local_path(
    given: str | os.PathLike[str],
    wanted: Wanted,
    *,
    revision: str | None = None,
    from_cache: bool = False,
) -> Path:
    """The path that was given, or the folder of what a Hub name `org/name` stands for.

    What exists is a path, and so is what has the name of an npz. Of a repository the files of
    `wanted` are fetched at `revision`, by default the main branch, unless they are there already;
    `from_cache` asks nobody. HF_HOME, HF_TOKEN and HF_HUB_OFFLINE count as for huggingface_hub.
    Raises CheckpointError where they cannot be had, OptionError for a revision of a path, and
    OutputError where they cannot be kept.
    """
    text = os.fspath(given)
    if not _is_hub_name(text):
        if revision is not None:
            raise OptionError(
                f"revision is {revision!r}, and {text} is no name on the Hub, as org/name; "
                "leave --revision out"
            )
        return Path(given)
    folder = _fetch(text, wanted, revision or DEFAULT_REVISION, from_cache)
    if not any((folder / name).exists() for name in wanted.needed):
        raise CheckpointError(_lacking(text, wanted, folder))
    return folder


def label(path: Path) -> str:
    """What a folder or a file is called: of a snapshot `org/name@commit`, else its last part."""
    resolved = path.resolve()
    if found := _SNAPSHOT.fullmatch(resolved.as_posix()):
        return f"{found['org']}/{found['name']}@{found['commit']}"
    return resolved.name


def _is_hub_name(text: str) -> bool:
    if os.path.lexists(text) or text.count("/") != 1 or is_npz_name(Path(text)):
        return False
    utils = _utils()
    try:
        utils.validate_repo_id(text)
    except utils.HFValidationError:
        return False
    return True


def _utils() -> Any:  # noqa: ANN401 - it says nowhere what it exports
    return importlib.import_module("huggingface_hub.utils")


def _fetch(name: str, wanted: Wanted, revision: str, from_cache: bool) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=list(wanted.files),
                local_files_only=from_cache,
                tqdm_class=_terminal_bar(),
            )
        )
    except Exception as error:  # of HTTP, of the disk, of helpers in other languages
        _explain(error, name, revision, from_cache)


def _terminal_bar() -> Any:  # noqa: ANN401 - as above
    """huggingface_hub's bar, which is drawn in a log too where it is not told otherwise."""
    bar = _utils().tqdm

    class TerminalBar(bar):  # type: ignore[misc,valid-type]
        def __init__(self, *arguments: object, **options: object) -> None:
            # tqdm's None is: on a terminal alone.
            super().__init__(*arguments, **{"disable": None, **options})

    return TerminalBar


def _explain(error: Exception, name: str, revision: str, from_cache: bool) -> NoReturn:
    from huggingface_hub import errors

    _refuse_disk(error, name)
    # What stood behind "not in the cache": no network, a busy Hub, or nothing.
    absent = isinstance(error, errors.LocalEntryNotFoundError)
    behind = (error.__cause__ if absent else None) or error
    status = getattr(getattr(behind, "response", None), "status_code", None)
    elsewhere = f"is no path here, and not whole in the cache {_cache()} at {revision!r}"
    match behind:
        case errors.GatedRepoError():
            found = f"is gated on the Hub, and {_standing()}"
            advice = f"accept its licence at {_address(name)}, then run `hf auth login`"
        case errors.RepositoryNotFoundError():
            found = "is neither a path here nor a repository on the Hub that you can see"
            advice = "check the name; if it is private, run `hf auth login`"
        case errors.RevisionNotFoundError():
            found = f"has no revision {revision!r} on the Hub"
            advice = "give a branch, a tag or a commit"
        case _ if status in (401, 403):
            found = f"is refused by the Hub ({_reason(behind)})"
            advice = f"accept its licence at {_address(name)}, then run `hf auth login`"
        case _ if status is not None:
            found, advice = f"cannot be had: the Hub answers HTTP {status}", "try again later"
        case errors.OfflineModeIsEnabled():
            found, advice = elsewhere, "HF_HUB_OFFLINE is set: unset it once, with a network"
        case _ if absent and from_cache:
            found, advice = elsewhere, "leave --from-cache out once, with a network"
        case _:
            found = f"is no path here, and cannot be fetched from the Hub ({_reason(behind)})"
            advice = "look to the network, or give the folder of a copy"
    raise CheckpointError(f"{name} {found}; {advice}") from None


def _refuse_disk(error: Exception, name: str) -> None:
    """Not the Hub but the cache: such an error has a number and mostly a path."""
    if not isinstance(error, OSError) or error.errno is None:
        return
    if error.errno in (errno.ENOSPC, errno.EDQUOT) or error.filename is not None:
        raise OutputError(
            error.errno,
            f"{name} cannot be kept in {_cache()}: {os.strerror(error.errno)}; free some space, or "
            "set HF_HOME to another folder",
        ) from None


def _lacking(name: str, wanted: Wanted, folder: Path) -> str:
    needed = f"{'neither ' if wanted.needed[1:] else 'no '}{' nor '.join(wanted.needed)}"
    return (
        f"{name} as it lies in {folder} has {needed}, wanted {wanted.called}; if the Hub has more "
        f"of it, fetch it with a network, else {wanted.advice}"
    )


def _standing() -> str:
    from huggingface_hub import get_token

    return "your token gives no access" if get_token() else "you have no token"


def _address(name: str) -> str:
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{name}"


def _cache() -> str:
    from huggingface_hub import constants

    return constants.HF_HUB_CACHE


def _reason(error: BaseException | None) -> str:
    text = " ".join(str(error).split())[:_LONGEST_REASON]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
