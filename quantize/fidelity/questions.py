"""The questions that calibrate a recipe and that its report is about, read from a folder.

Knows images, prompts and true answers as `prompts.json` tells them. Knows nothing of a model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from paligemma_edge.runtime.errors import ImageError, OptionError
from paligemma_edge.runtime.images.load import FORMATS, image_label, load_image
from paligemma_edge.runtime.schema import MismatchError, parse_json

PROMPTS_FILE = "prompts.json"
DEFAULT_PROMPTS = ("caption en", "answer en what is this?", "detect object")

_MAX_BYTES = 64 << 20
_MASK_MODES = ("L", "P")
_WANTED = '[{"image": "file.png", "questions": [{"prompt": "caption en"}, ...]}, ...]'


@dataclass(frozen=True)
class GroundTruth:
    """A true object: its label, corners y0, x0, y1, x1 in pixels, and its value in the masks."""

    label: str
    box: tuple[float, float, float, float]
    mask: int | None = None


@dataclass(frozen=True, kw_only=True)
class Question:
    """A prompt about an image, and what is known of the true answer: words or objects."""

    image: Path
    prompt: str
    task: str  # the prompt's first word where the folder names none
    text: str | None = None
    objects: tuple[GroundTruth, ...] | None = None
    masks: Path | None = None  # an image as large as the other, each object in a value of its own


@dataclass(frozen=True)
class _PromptEntry:
    prompt: str
    task: str | None = None
    text: str | None = None
    objects: tuple[GroundTruth, ...] | None = None


@dataclass(frozen=True)
class _Entry:
    image: str
    questions: tuple[_PromptEntry, ...]
    masks: str | None = None


def sample_questions() -> list[Question]:
    """Those about the images that are installed with this package, truth included."""
    return read_questions(Path(str(files("paligemma_edge.sample_images"))))


def read_questions(
    directory: Path,
    *,
    prompts: Iterable[str] = DEFAULT_PROMPTS,
    tell: Callable[[str], None] | None = None,
) -> list[Question]:
    """The questions of a folder's `prompts.json`, or `prompts` about each image in it.

    Every image is opened. Without a `prompts.json`, a file that is no image is skipped and
    `tell` is told; with one it is an ImageError. OptionError where no question is left or the
    file has another form.
    """
    if not directory.is_dir():
        found = "is no folder" if directory.exists() else "does not exist"
        raise OptionError(f"{directory} {found}, wanted a folder of images")
    if not (directory / PROMPTS_FILE).exists():
        images, asked = _readable_images(directory, tell), list(map(_PromptEntry, prompts))
        return [_question(image, a, None) for image in images for a in asked]
    questions = parse_prompts(directory)
    sizes = {image: load_image(image).size for image in {q.image for q in questions}}
    for image, masks in {(q.image, q.masks) for q in questions if q.masks is not None}:
        read_masks(masks, sizes[image])
    return questions


def parse_prompts(directory: Path) -> list[Question]:
    """Every prompt of a folder's `prompts.json`; its images are not opened.

    The file is a list of `{"image": name, "questions": [{"prompt": text}]}`. Optional are the
    image's `masks` and a question's `task`, `text` and `objects`; other fields are left unread.
    OptionError where it is absent or of another form.
    """
    path = directory / PROMPTS_FILE
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise MismatchError(f"it has more than {_MAX_BYTES >> 20} MiB")
        entries = parse_json(tuple[_Entry, ...], path.read_bytes())
    except OSError as error:
        raise OptionError(f"cannot read {path}: {error.strerror}; wanted {_WANTED}") from None
    except MismatchError as error:
        raise OptionError(f"{path} has another form: {error}; wanted {_WANTED}") from None
    questions = [_asked(directory, entry, asked) for entry in entries for asked in entry.questions]
    if not questions:
        raise OptionError(f"{path} has no prompts, wanted {_WANTED}")
    return questions


def read_masks(path: Path, size: tuple[int, int]) -> NDArray[np.uint8]:
    """The value of the object at each pixel, uint8 [height, width].

    `size` is the width and height of the image that the masks are of. ImageError where they
    cannot be read or are of another size.
    """
    label = image_label(path)
    try:
        with Image.open(path, formats=FORMATS) as image:
            found, mode = image.size, image.mode
            values = np.asarray(image) if found == size and mode in _MASK_MODES else None
    except Exception:  # decoders raise what they like
        raise ImageError(f"{label}: cannot be read, wanted an image of masks") from None
    if values is None:
        raise ImageError(
            f"{label}: {found[0]} x {found[1]} pixels in mode {mode}, wanted masks of "
            f"{size[0]} x {size[1]} like their image, with one byte a pixel"
        )
    return values


def _asked(directory: Path, entry: _Entry, asked: _PromptEntry) -> Question:
    return _question(
        directory / entry.image, asked, None if entry.masks is None else directory / entry.masks
    )


def _question(image: Path, asked: _PromptEntry, masks: Path | None) -> Question:
    task = asked.task or (asked.prompt.split() or [""])[0]
    return Question(
        image=image,
        prompt=asked.prompt,
        task=task,
        text=asked.text,
        objects=asked.objects,
        masks=masks,
    )


def _readable_images(directory: Path, tell: Callable[[str], None] | None) -> list[Path]:
    images = []
    for path in _visible_files(directory):
        try:
            load_image(path)
            images.append(path)
        except ImageError as error:
            if tell:
                tell(f"skipped {error}")
    if not images:
        raise OptionError(
            f"{directory} holds no readable image, wanted JPEG, PNG, WebP or BMP files"
        )
    return images


def _visible_files(directory: Path) -> list[Path]:
    try:
        paths = sorted(directory.iterdir())
    except OSError as error:
        raise OptionError(f"cannot read {directory}: {error.strerror}") from None
    return [path for path in paths if path.is_file() and not path.name.startswith(".")]
