"""Which links a bundle may hold: those of the Hugging Face Hub's cache, and those within itself.

A file may be one link, relative, to a regular file in the folder that the bundle and all of its
content belong to: the bundle itself or, in the Hub's cache, the folder of its repository, where
`snapshots/REVISION/...` are links to `blobs/...`. No folder below the bundle may be a link. What
a link leads to is compared by its digest as any file is. Knows names and links, no contents.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path, PurePosixPath

from paligemma_edge.runtime.errors import BundleError
from paligemma_edge.runtime.printable import short_line
from paligemma_edge.runtime.system.file_kind import kind_of

_SNAPSHOTS, _BLOBS = "snapshots", "blobs"  # of a repository in the Hub's cache
_COPY = "copy the file itself in its place, as `cp -rL` does with a whole bundle"


def file_status(directory: Path, name: str) -> os.stat_result:
    """The status of a bundle's file, or of that to which it is a link.

    Hard links are files like any other. BundleError for a link that may not be there, and for
    what is no regular file; FileNotFoundError where there is nothing.
    """
    status = (directory / name).lstat()
    if stat.S_ISLNK(status.st_mode):
        return _target_status(directory, name)
    if not stat.S_ISREG(status.st_mode):
        raise BundleError(
            f"bundle {directory}: {name} is {kind_of(status)}, not a regular file; copy or export "
            "the bundle again"
        )
    return status


def refuse_linked_folder(directory: Path, name: str) -> None:
    """BundleError where a folder on the way to a bundle's file is a link."""
    parts = PurePosixPath(name).parts
    for depth in range(1, len(parts)):
        folder = directory.joinpath(*parts[:depth])
        if folder.is_symlink():
            inner = "/".join(parts[:depth])
            raise BundleError(
                f"bundle {directory}: {inner} is a link to {target_text(folder)}, and no folder in "
                "a bundle may be one; copy the folder itself in its place, as `cp -rL` does"
            )


def target_text(link: Path) -> str:
    """Where a link leads, as it is written there, for a message."""
    return short_line(repr(str(link.readlink())))


def _target_status(directory: Path, name: str) -> os.stat_result:
    """The status of what a link leads to, if it may lead there."""
    link = directory / name
    # The bundle itself may be reached through links; within it no folder is one.
    place = Path(os.path.realpath(directory))
    written = place / PurePosixPath(name).parent / link.readlink()
    target = Path(os.path.normpath(written))

    def refused(why: str) -> BundleError:
        return BundleError(
            f"bundle {directory}: {name} is a link to {target_text(link)}, {why}; {_COPY}"
        )

    if link.readlink().is_absolute():
        raise refused("an absolute path, wanted one that stays valid with the bundle")
    if not any(target.is_relative_to(root) for root in _roots(place)):
        raise refused("which leads out of the folder that it belongs to")
    try:
        status = target.lstat()
        # Not `resolve`, which raises for loops; nothing on the way may be a link.
        through_links = os.path.realpath(written) != str(target)
    except (FileNotFoundError, NotADirectoryError):
        raise refused("where nothing is") from None
    if through_links or stat.S_ISLNK(status.st_mode):
        raise refused("which is another link or behind one")
    if not stat.S_ISREG(status.st_mode):
        raise refused(f"which is {kind_of(status)}")
    return status


def _roots(place: Path) -> list[Path]:
    """The folders that links of a bundle may lead into; `place` is without links."""
    above = zip(place.parents, place.parents[1:], strict=False)
    caches = [
        root
        for folder, root in above
        if folder.name == _SNAPSHOTS and stat.S_ISDIR(_mode(root / _BLOBS))
    ]
    return [place, *caches[:1]]


def _mode(path: Path) -> int:
    try:
        return path.lstat().st_mode
    except OSError:
        return 0
