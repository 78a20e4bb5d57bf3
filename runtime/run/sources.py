"""What PATHS stand for: a list of images, read when their turn comes.

Knows names of files, folders, globs, lists, videos and cameras. Opens no image.
"""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import PurePath
from typing import TextIO, TypeAlias

from paligemma_edge.runtime.errors import ImageError, OptionError
from paligemma_edge.runtime.images.formats import IMAGE_SUFFIXES, WANTED
from paligemma_edge.runtime.images.load import ImageInput
from paligemma_edge.runtime.printable import short_line
from paligemma_edge.runtime.run import video as frames
from paligemma_edge.runtime.run.hints import kinds_text
from paligemma_edge.runtime.run.text_lines import text_lines
from paligemma_edge.runtime.validation import is_number

VIDEOS = (".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v")
STDIN = "-"
DEFAULT_EVERY = 1.0  # seconds between two frames of a video

_SHOWN = 100  # characters of a line that is not a name
_CAMERA = re.compile(r"camera:([0-9]{1,3})")


@dataclass(frozen=True, eq=False)
class Source:
    """An image and its name in records; an image that cannot be read is the error that says why.

    `prompts` are its own, where it comes with some: nothing else is asked about it then. `place` is
    the line that they are from, such as "test.jsonl:3". `time` is that of a frame, in seconds from
    the start.
    """

    name: str
    image: ImageInput | ImageError
    prompts: tuple[str, ...] = ()
    place: str = ""
    time: float | None = None

    def load(self) -> ImageInput:
        """The path of a file, or the array of a frame; ImageError where there is neither."""
        if isinstance(self.image, ImageError):
            raise self.image
        return self.image


Opens: TypeAlias = Callable[[], Iterator[Source]]


@dataclass(frozen=True, eq=False)
class Sources:
    """Images in their order, each once. Iterate over it once: a list may be a pipe.

    `count` is None where it is not known beforehand, `live` is whether a camera takes part, which
    ends when it is interrupted, and `paced` whether the next image may come late: from a camera,
    or from a list that is still written. `root` is the folder that all are below; None where
    there is none, or where it is not known beforehand. `left_out` counts the files of folders
    and globs that are no images, by the ending of their names.
    """

    entries: tuple[Source | Opens, ...]  # an image, or what opens into several images
    live: bool = False
    paced: bool = False
    root: PurePath | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)

    @property
    def count(self) -> int | None:
        """How many there are."""
        return len(self.entries) if len(self.known) == len(self.entries) else None

    @cached_property
    def known(self) -> tuple[Source, ...]:
        """Those that are known before anything is read."""
        return tuple(entry for entry in self.entries if isinstance(entry, Source))

    def relative(self, name: str) -> str:
        """The name of an image as it is below `root`; as it is where there is no root."""
        path = PurePath(name)
        if self.root is None or not path.is_relative_to(self.root):
            return name
        return str(path.relative_to(self.root))

    def __iter__(self) -> Iterator[Source]:
        seen = set()
        for entry in self.entries:
            for source in [entry] if isinstance(entry, Source) else entry():
                if (key := (source.name, source.prompts)) not in seen:
                    seen.add(key)
                    yield source


def find_sources(
    paths: Sequence[str | os.PathLike[str]], stdin: TextIO, every: float | None = None
) -> Sources:
    """List what PATHS name: files, folders, globs, `-`, videos, `camera:0`.

    A folder is searched with all below it, links to folders and hidden files left out. `-` is a
    list of files, one a line, read when their turn comes. A file that does not exist is listed:
    its load says so. OptionError for a folder or a glob that has no image and for a camera
    that is not there, MissingExtraError for a video without PyAV.
    """
    if every is not None and not (is_number(every) and 0 < every < float("inf")):
        raise OptionError(f"--every is {every}, wanted seconds above 0")
    given = [os.fspath(path) for path in paths]
    left_out: Counter[str] = Counter()
    names = [name for path in given for name in _names(path, left_out)]
    entries = {name: _entry(name, stdin, every) for name in names}
    live = any(_camera(name) is not None for name in entries)
    if every is not None and not live and not any(map(_may_be_video, entries)):
        raise OptionError("--every is about videos and cameras, and PATHS name none; leave it out")
    paced = live or STDIN in entries
    root = None if paced else _root(given)
    return Sources(tuple(entries.values()), live, paced, root, left_out)


def _root(paths: Iterable[str]) -> PurePath | None:
    """The folder that all PATHS are in, whatever is in it by now; None where there is none."""
    try:
        return PurePath(os.path.commonpath([_folder_of(path) for path in paths]))
    except ValueError:  # absolute and relative ones
        return None


def _folder_of(path: str) -> str:
    """A folder itself, the part of a glob that is no pattern, the folder of a file."""
    if os.path.isdir(path):  # noqa: PTH112 - a name is kept as it was given
        return path
    while glob.has_magic(path) and not os.path.lexists(path):
        path = os.path.dirname(path)  # noqa: PTH120
        if not glob.has_magic(path):
            return path
    return os.path.dirname(path)  # noqa: PTH120


def _names(path: str, left_out: Counter[str]) -> Iterable[str]:
    """The names that one of PATHS stands for; what it has besides is added to `left_out`."""
    others: Counter[str] = Counter()
    if os.path.isdir(path):  # noqa: PTH112 - a name is kept as it was given
        names, problem = _in_folder(path, others), "a folder without images"
    elif glob.has_magic(path) and not os.path.lexists(path):
        names, problem = _in_glob(path, others), "matches no image"
    else:
        return [path]
    if not names:
        found = f" (it has {kinds_text(others)})" if others else ""
        raise OptionError(f"{path}: {problem}{found}, {WANTED}")
    left_out.update(others)
    return names


def _in_folder(folder: str, others: Counter[str]) -> list[str]:
    names: list[str] = []
    for place, folders, files in os.walk(folder, onerror=_unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if _is_shown(name, IMAGE_SUFFIXES):
                names.append(os.path.join(place, name))  # noqa: PTH118
            else:
                _count(name, others)
    return names


def _in_glob(pattern: str, others: Counter[str]) -> list[str]:
    names: list[str] = []
    for name in set(glob.iglob(pattern, recursive=True)):  # noqa: PTH207 - names as they were given
        if _is_shown(name, IMAGE_SUFFIXES + VIDEOS):
            names.append(name)
        elif not os.path.isdir(name):  # noqa: PTH112
            _count(name, others)
    return sorted(names)


def _count(name: str, others: Counter[str]) -> None:
    """Count a file that is no image by its ending, unless it is hidden."""
    if not os.path.basename(name).startswith("."):  # noqa: PTH119
        others[os.path.splitext(name)[1].lower()] += 1  # noqa: PTH122


def _is_shown(name: str, suffixes: tuple[str, ...]) -> bool:
    return name.lower().endswith(suffixes) and not os.path.basename(name).startswith(".")  # noqa: PTH119


def _unreadable(error: OSError) -> None:
    raise OptionError(
        f"{error.filename}: a folder that cannot be read ({error.strerror}); check its permissions"
    )


def _entry(name: str, stdin: TextIO, every: float | None) -> Source | Opens:
    number = _camera(name)
    if number is not None:
        frames.check_installed(name)
        if not frames.camera_device(number).exists():
            raise OptionError(f"{name}: there is no {frames.camera_device(number)}")
        return partial(_from_frames, name, partial(frames.camera_frames, number, every or 0.0))
    if name == STDIN:
        return partial(_listed, stdin, every)
    if name.lower().endswith(VIDEOS):
        frames.check_installed(name)
        return _video(name, every)
    return Source(name, name)


def _may_be_video(name: str) -> bool:
    return name == STDIN or name.lower().endswith(VIDEOS)


def _camera(name: str) -> int | None:
    match = _CAMERA.fullmatch(name)
    return int(match[1]) if match and not os.path.lexists(name) else None


def _listed(stdin: TextIO, every: float | None) -> Iterator[Source]:
    """The files of a list, one a line."""
    for line in _lines(stdin):
        name = line.removesuffix("\n").removesuffix("\r")
        if "\0" in name:
            yield _with_nul_bytes(name)
        elif name.lower().endswith(VIDEOS):
            frames.check_installed(name)
            yield from _video(name, every)()
        elif name:
            yield Source(name, name)


def _lines(stdin: TextIO) -> Iterator[str]:
    """Its lines; OptionError where it is closed, or has no text."""
    try:
        yield from text_lines(stdin)
    except (OSError, ValueError) as error:
        reason = short_line(getattr(error, "strerror", None) or str(error), _SHOWN)
        raise OptionError(
            f"standard input cannot be read ({reason}), and - stands for a list of files there; "
            "name the images, or give the list"
        ) from None


def _with_nul_bytes(line: str) -> Source:
    """The source for a line in which NUL bytes separate names."""
    name = short_line(line.replace("\0", "\\0"), _SHOWN)
    return Source(
        name,
        ImageError(
            f"{name}: a name with a NUL byte, wanted one name a line; use find without -print0"
        ),
    )


def _video(name: str, every: float | None) -> Opens:
    return partial(_from_frames, name, partial(frames.video_frames, name, every or DEFAULT_EVERY))


def _from_frames(name: str, opened: Callable[[], Iterator[frames.Frame]]) -> Iterator[Source]:
    """A source for each frame; where one cannot be read, the last source is that error."""
    try:
        for seconds, pixels in opened():
            # Padded, so that names sort by time, up to eleven days of it.
            yield Source(f"{name}@{seconds:010.3f}s", pixels, time=round(seconds, 3))
    except ImageError as error:
        yield Source(name, error)
