"""Images with boxes and masks drawn over them, as files.

Knows where each one goes: never out of its folder, never over an image that is read, never two
in one place. Knows nothing of a model.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from paligemma_edge.runtime.errors import DeviceError, ImageError, OptionError, OutputError
from paligemma_edge.runtime.images.formats import FORMATS, format_of_name
from paligemma_edge.runtime.images.load import ImageInput, image_label, load_image
from paligemma_edge.runtime.results.build import DecodeMasks, decoded_masks
from paligemma_edge.runtime.results.draw import draw
from paligemma_edge.runtime.results.mask import paste_mask
from paligemma_edge.runtime.results.result import ObjectResult
from paligemma_edge.runtime.run.decode_errors import as_image_errors
from paligemma_edge.runtime.run.journal import Key
from paligemma_edge.runtime.run.queries import Result
from paligemma_edge.runtime.run.sources import Source, Sources
from paligemma_edge.runtime.system.atomic_file import (
    check_target,
    drafted,
    is_stream,
    unwritable,
    written,
)
from paligemma_edge.runtime.text.parse_answer import parse_answer

_OPTION = "--draw"
# Pillow's formats in which an overlay is written, under any of their suffixes, and how.
_WRITTEN: Mapping[str, Mapping[str, Any]] = {
    "PNG": {},
    "JPEG": {"quality": 92},
    "WEBP": {"quality": 92},
    "BMP": {},
}
_SUFFIXES = tuple(one.suffixes[0] for one in FORMATS if one.name in _WRITTEN)
_OF_STREAMS = "PNG"  # where their name says nothing
_FRAME = ".jpg"  # for a source whose name has no image suffix


@dataclass
class Overlays:
    """Where the overlays of a run go: into a folder, or, for a single image, into one file."""

    target: Path
    prompts: Sequence[str]  # of images that have none of their own
    is_file: bool
    sources: frozenset[str]  # absolute paths that must stay as they are
    relative: Callable[[str], str] = str  # an image's name → its name below the target
    _places: dict[Key, Path] = field(default_factory=dict)  # of overlays that are not written yet
    _taken: set[Path] = field(default_factory=set)

    def claim(self, sources: Iterable[Source]) -> Iterator[Source]:
        """Pass sources on, giving each its places in order, so that a resumed run has the same."""
        for source in sources:
            for number, prompt in enumerate(source.prompts or self.prompts, 1):
                self._places[source.name, prompt] = self._claimed(source, prompt, number)
            yield source

    def write(
        self,
        source: Source,
        prompt: str,
        result: Result,
        decode_masks: DecodeMasks = None,
        *,
        load: Callable[[ImageInput], Image.Image] = load_image,
    ) -> Path:
        """Draw an answer over its image and put it in its place, whole.

        `decode_masks` is for a text that holds masks. ImageError where this image cannot be
        drawn, OutputError where no file can be written.
        """
        place = self._places.pop((source.name, prompt))
        try:
            with as_image_errors(source.name):
                image = _drawn(load(source.load()), result, decode_masks)
        except (OptionError, DeviceError) as error:  # such as of another shape than it was
            raise ImageError(f"{image_label(source.name)}: {error}") from None
        data = _encoded(image, place)
        if not self.is_file:
            self._make_folder(place.parent)
        # A link in the folder is replaced: it could lead out of it.
        output = written if self.is_file else drafted
        with output(place, _OPTION) as file:
            file.write(data)
        return place

    def _claimed(self, source: Source, prompt: str, number: int) -> Path:
        name = self.relative(source.name)
        place = self.target if self.is_file else self.target / safe_name(name, number)
        if place in self._taken:
            both = f"{prompt} {source.name}".encode(errors="surrogatepass")
            mark = hashlib.sha256(both).hexdigest()[:8]
            place = place.with_name(f"{place.stem}-{mark}{place.suffix}")
        real = str(place.resolve())
        if real in self.sources or (
            isinstance(source.image, str) and real == os.path.realpath(source.image)
        ):
            raise OutputError(
                errno.EEXIST,
                f"{_OPTION} would write over the image {place}; give another folder or name",
            )
        self._taken.add(place)
        return place

    def _make_folder(self, folder: Path) -> None:
        """Make it where it is missing; a link in it must not lead out."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            inside = folder.resolve().is_relative_to(self.target.resolve())
        except OSError as error:
            raise unwritable(folder, error, _OPTION) from None
        if not inside:
            raise OutputError(
                errno.ELOOP, f"{folder} leads out of {self.target}; give another folder to --draw"
            )


def open_overlays(
    target: Path, prompts: Sequence[str], sources: Sources, *, reuse: bool
) -> Overlays:
    """Check, before the model is opened, that overlays can be written after its answers.

    A target with an image's suffix is a file, for one image and prompt, and so is a stream, which
    gets a PNG where it has none; any other is a folder. A file is new, and a folder is new or
    empty, unless `reuse`.
    """
    is_file = _is_written(target.name) or is_stream(target)
    if is_file:
        if sources.count != 1 or len(prompts) > 1:
            raise OptionError(
                f"{_OPTION} {target} names one image, and more are to be drawn; give a folder"
            )
        check_target(target, _OPTION, overwrite=reuse)
    else:
        _check_folder(target, reuse)
    images = (source.image for source in sources.known)
    known = frozenset(os.path.realpath(image) for image in images if isinstance(image, str))
    return Overlays(target, prompts, is_file, known, sources.relative)


def lacks_masks(result: Result, decode_masks: DecodeMasks) -> bool:
    """Whether a text holds masks that cannot be drawn."""
    if decode_masks is not None or isinstance(result, ObjectResult):
        return False
    return any(o.codes is not None for o in parse_answer(result.text).objects)


def safe_name(name: str, prompt: int = 1) -> PurePosixPath:
    """A source's name as a path below a folder, with an image's suffix.

    The root and `.` are left out, `..` becomes `_`; prompts after the first add their number.
    """
    parts = ["_" if part == ".." else part for part in PurePosixPath(name).parts if part.strip("/")]
    place = PurePosixPath(*parts or ["image"])
    if not _is_written(place.name):
        place = place.with_name(f"{place.name}{_FRAME}")
    return place if prompt == 1 else place.with_name(f"{place.stem}-{prompt}{place.suffix}")


def _is_written(name: str) -> bool:
    return _format_name(name) in _WRITTEN


def _format_name(name: str) -> str:
    kind = format_of_name(name)
    return "" if kind is None else kind.name


def _check_folder(target: Path, reuse: bool) -> None:
    if target.suffix and not target.is_dir():
        raise OptionError(
            f"{_OPTION} {target}: wanted a folder, or a name that ends in {', '.join(_SUFFIXES)}"
        )
    try:
        there = target if target.exists() else target.parent
        if not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{there} is not a folder")
        if not os.access(there, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        filled = target.exists() and any(target.iterdir())
    except OSError as error:
        raise unwritable(target, error, _OPTION) from None
    if filled and not reuse:
        raise OutputError(
            errno.ENOTEMPTY,
            f"{_OPTION} {target} holds files already; give an empty or a new folder, or "
            "--overwrite to write over those of the same name",
        )


def _drawn(image: Image.Image, result: Result, decode_masks: DecodeMasks) -> Image.Image:
    if isinstance(result, ObjectResult):
        return result.draw(image)
    objects = parse_answer(result.text).objects
    decoded = zip(objects, decoded_masks(objects, decode_masks), strict=True)
    # Made one by one, for they are large.
    masks = (m if m is None else paste_mask(m, f.box, *image.size) for f, m in decoded)
    return draw(image, objects, masks)


def _encoded(image: Image.Image, place: Path) -> bytes:
    kind, file = _format_name(place.name) or _OF_STREAMS, io.BytesIO()
    try:
        image.save(file, kind, **_WRITTEN[kind])
    except Exception:  # of any class, such as of a WebP of more than 16383 pixels a side
        raise ImageError(
            f"cannot write {place}: {image.width} x {image.height} pixels are too large for "
            f"{kind}; draw into a file that ends in .png"
        ) from None
    return file.getvalue()
