"""Why files could not be fetched from the Hub, in one line that says what to do.

Knows huggingface_hub's exceptions. Fetches nothing.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import NoReturn

from paligemma_edge.runtime.errors import OutputError, PaliGemmaError
from paligemma_edge.runtime.hub.file_set import FileSet
from paligemma_edge.runtime.hub.name import HubName

_LONGEST_REASON = 200


def raise_fetch_error(
    error: Exception, name: HubName, files: FileSet, *, from_cache: bool
) -> NoReturn:
    """Raise the error of these files, or OutputError, that explains a failed download."""
    from huggingface_hub import errors

    _raise_disk_error(error, name)
    # The cause of "not in the cache" is the real reason: no network, a busy Hub, or nothing.
    absent = isinstance(error, errors.LocalEntryNotFoundError)
    cause = (error.__cause__ if absent else None) or error
    status = getattr(getattr(cause, "response", None), "status_code", None)
    not_cached = f"is not a path here, and not complete in the cache {cache_folder()}"
    not_cached += f" at {name.revision!r}"
    match cause:
        case errors.GatedRepoError():
            problem = f"is gated on the Hub, and {_token_state()}"
            advice = f"accept its licence at {_address(name)}, then run `hf auth login`"
        case errors.RepositoryNotFoundError():
            problem = "is neither a path here nor a repository on the Hub that you can see"
            advice = "check the name; if it is private, run `hf auth login`"
        case errors.RevisionNotFoundError():
            problem = f"has no revision {name.revision!r} on the Hub"
            advice = "give a branch, a tag or a commit"
        case _ if status in (401, 403):
            problem = f"is refused by the Hub ({_reason(cause)})"
            advice = f"accept its licence at {_address(name)}, then run `hf auth login`"
        case _ if status is not None:
            problem, advice = f"cannot be fetched: the Hub answers HTTP {status}", "try again later"
        case errors.OfflineModeIsEnabled():
            problem, advice = not_cached, "HF_HUB_OFFLINE is set: unset it once, with a network"
        case _ if absent and from_cache:
            problem, advice = not_cached, "leave --from-cache out once, with a network"
        case _:
            problem = f"is not a path here, and cannot be fetched from the Hub ({_reason(cause)})"
            advice = "check the network, or give the folder of a copy"
    raise files.error(f"{name} {problem}; {advice}") from None


def _raise_disk_error(error: Exception, name: HubName) -> None:
    """Raise OutputError for an error of the disk: it has a number and usually a path."""
    if not isinstance(error, OSError) or error.errno is None:
        return
    if error.errno in (errno.ENOSPC, errno.EDQUOT) or error.filename is not None:
        raise OutputError(
            error.errno,
            f"{name} cannot be kept in {cache_folder()}: {os.strerror(error.errno)}; free some "
            "space, or set HF_HOME to another folder",
        ) from None


def incomplete(name: HubName, files: FileSet, folder: Path) -> PaliGemmaError:
    """The error of a repository without any of the needed files."""
    needed = f"{'neither ' if files.needed[1:] else 'no '}{' nor '.join(files.needed)}"
    return files.error(
        f"{name} as stored in {folder} has {needed}, wanted {files.description}; if the Hub has "
        f"more of it, fetch it with a network, else {files.advice}"
    )


def cache_folder() -> str:
    """The folder of the cache, as HF_HOME or HF_HUB_CACHE set it."""
    from huggingface_hub import constants

    return constants.HF_HUB_CACHE


def _token_state() -> str:
    from huggingface_hub import get_token

    return "your token gives no access" if get_token() else "you have no token"


def _address(name: HubName) -> str:
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{name}"


def _reason(error: BaseException | None) -> str:
    text = " ".join(str(error).split())[:_LONGEST_REASON]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
