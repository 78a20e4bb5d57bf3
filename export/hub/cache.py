"""Which repository and commit a folder in huggingface_hub's cache holds."""

from __future__ import annotations

import re
from pathlib import Path

# Where huggingface_hub keeps a repository: models--ORG--NAME/snapshots/COMMIT.
_SNAPSHOT = re.compile(r".*/models--(?P<org>.+?)--(?P<name>.+)/snapshots/(?P<commit>[0-9a-f]{40})")


def google_model(path: Path) -> bool:
    """Whether a folder is a PaliGemma that huggingface_hub fetched from Google's own repository.

    Only then it is known which model this is: a folder may have any name.
    """
    return label(path).startswith(("google/paligemma-", "google/paligemma2-"))


def label(path: Path) -> str:
    """A short name of a folder or file: `org/name@commit` of a snapshot, else its last part."""
    resolved = path.resolve()
    if snapshot := _SNAPSHOT.fullmatch(resolved.as_posix()):
        return f"{snapshot['org']}/{snapshot['name']}@{snapshot['commit']}"
    return resolved.name
