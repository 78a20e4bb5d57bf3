"""Which links a bundle may hold: those of the Hugging Face Hub's cache, and those within itself.

A file may be one link, relative, to a regular file in the folder that the bundle and all of its
content belong to: the bundle itself or, in the Hub's cache, the folder of its repository, where
`snapshots/REVISION/...` are links to `blobs/...`. No folder below the bundle may be a link. What
a link leads to is compared by its digest as any file is. Knows names and links, no contents.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path, PurePosixPath

from paligemma_edge.runtime.errors import BundleError
from paligemma_edge.runtime.printable import short_line
from paligemma_edge.runtime.system.file_kind import kind_of

_SNAPSHOTS, _BLOBS = "snapshots", "blobs"  # of a repository in the Hub's cache
_COPY = "copy the file itself in its place, as `cp -rL` does with a whole bundle"
_NAMED = 3  # folders in a message
_AGAIN = "copy or export the bundle again"
_FETCH = (
    "fetch it again: name the repository in place of its folder, or run `hf download {repository}`"
)
_REPOSITORY = re.compile(r"models--(?P<org>.+?)--(?P<name>.+)")  # its folder in the Hub's cache


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
            f"bundle {directory}: {name} is {kind_of(status)}, not a regular file; {_AGAIN}"
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


def inner_bundles(directory: Path, manifest: str) -> str:
    """The folders below one that hold a manifest, as of the Hub's cache, for a message."""
    patterns = ("*", "*/*", f"{_SNAPSHOTS}/*/*", f"*/{_SNAPSHOTS}/*")
    found = (path for pattern in patterns for path in directory.glob(f"{pattern}/{manifest}"))
    folders = sorted({path.parent.relative_to(directory).as_posix() for path in found})
    more = [f"{len(folders) - _NAMED} more"] if len(folders) > _NAMED else []
    return ", ".join([short_line(folder) for folder in folders[:_NAMED]] + more)


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

    def refused(why: str, advice: str = _COPY) -> BundleError:
        return BundleError(
            f"bundle {directory}: {name} is a link to {target_text(link)}, {why}; {advice}"
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
        raise refused("where nothing is", _remedy(place)) from None
    if through_links or stat.S_ISLNK(status.st_mode):
        raise refused("which is another link or behind one")
    if not stat.S_ISREG(status.st_mode):
        raise refused(f"which is {kind_of(status)}")
    return status


def _remedy(place: Path) -> str:
    """What to do where a file of the bundle is gone."""
    for root in _repositories(place):
        if match := _REPOSITORY.fullmatch(root.name):
            return _FETCH.format(repository=short_line(f"{match['org']}/{match['name']}"))
    return _AGAIN


def _roots(place: Path) -> list[Path]:
    """The folders that links of a bundle may lead into; `place` is without links."""
    return [place, *_repositories(place)]


def _repositories(place: Path) -> list[Path]:
    """The repository in the Hub's cache that a folder is a snapshot of, or is in one, if any."""
    above = zip(place.parents, place.parents[1:], strict=False)
    caches = [
        root
        for folder, root in above
        if folder.name == _SNAPSHOTS and stat.S_ISDIR(_mode(root / _BLOBS))
    ]
    return caches[:1]


def _mode(path: Path) -> int:
    try:
        return path.lstat().st_mode
    except OSError:
        return 0
