"""What is a name on the Hugging Face Hub and what is a path.

Opens nothing. The package huggingface_hub is the extra `hub`.
"""

from __future__ import annotations

import importlib
import os
import re
from dataclasses import dataclass
from typing import Any

from paligemma_edge.runtime.errors import MissingExtraError
from paligemma_edge.runtime.printable import short_line

_NAME = re.compile(
    r"(?P<repository>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>[^\s@]\S*))?", flags=re.ASCII
)


@dataclass(frozen=True)
class HubName:
    """A repository on the Hub at a revision: `org/name`, or `org/name@revision`."""

    repository: str
    revision: str = "main"  # a branch, a tag or a commit

    def __str__(self) -> str:
        return self.repository


def hub_name(path_or_name: str | os.PathLike[str]) -> HubName | None:
    """The name, as huggingface_hub accepts it; None for a path. What exists is a path.

    MissingExtraError where it can only be a name and huggingface_hub is not installed.
    """
    text = os.fspath(path_or_name)
    match = _NAME.fullmatch(text) if isinstance(text, str) else None
    if match is None or os.path.lexists(text):
        return None
    utils = hub_utils(text)
    try:
        utils.validate_repo_id(match["repository"])
    except utils.HFValidationError:
        return None
    return HubName(match["repository"], match["revision"] or HubName.revision)


def hub_utils(text: str) -> Any:  # noqa: ANN401 - it declares no exports
    """`huggingface_hub.utils`; MissingExtraError, about the name that is asked for."""
    try:
        return importlib.import_module("huggingface_hub.utils")
    except ModuleNotFoundError as missing:
        if (missing.name or "").partition(".")[0] != "huggingface_hub":
            raise
        raise MissingExtraError(
            f"there is no {short_line(text)} here; for a name on the Hugging Face Hub the package "
            "huggingface_hub is needed, which is not installed; check the path, or run: "
            "pip install 'paligemma-edge[hub]'"
        ) from None
