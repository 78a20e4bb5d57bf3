"""Which files of a repository on the Hub are fetched."""

from __future__ import annotations

from dataclasses import dataclass

from paligemma_edge.runtime.errors import PaliGemmaError


@dataclass(frozen=True)
class FileSet:
    """The files to fetch from a repository."""

    description: str
    files: tuple[str, ...]  # names, or patterns with a *
    needed: tuple[str, ...]  # at least one of them has to be there
    advice: str  # if none is
    error: type[PaliGemmaError]  # raised where they cannot be had
