"""The questions that calibrate a recipe and that its report is about, read from a folder.

Knows images, prompts and true answers as `prompts.json` has them. Knows nothing of a model.
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
from paligemma_edge.runtime.images.formats import FORMATS, WANTED
from paligemma_edge.runtime.images.load import image_label, load_image
from paligemma_edge.runtime.schema import MismatchError, parse_json
from paligemma_edge.runtime.system.file_kind import problem_of_file

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
    """A prompt about an image, and what is known of the true answer: words or objects.

    Args:
        image: The path of the image.
        prompt: A prompt about it, such as "detect cat".
        task: What scores are grouped by; the prompt's first word where the folder names none.
        text: The true answer in words, if it is known.
        objects: The true objects, with boxes in pixels, if they are known.
        masks: The path of an image as large as the other, uint8 in one channel, in which the
            pixels of each object have its `GroundTruth.mask` as their value.
    """

    image: Path
    prompt: str
    task: str
    text: str | None = None
    objects: tuple[GroundTruth, ...] | None = None
    masks: Path | None = None


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
    note: Callable[[str], None] | None = None,
) -> list[Question]:
    """Read the questions of a folder's `prompts.json`, or pair `prompts` with each image in it.

    Every image is opened. The form of `prompts.json` is that of `parse_prompts`.

    Args:
        directory: A folder of images.
        prompts: The prompts about each image where there is no `prompts.json`.
        note: Called with a line for each file that was skipped because it is not an image. With
            a `prompts.json` such a file is an error.

    Returns:
        The questions, in the order of the file, or of the images' names.

    Raises:
        ImageError: An image or its masks cannot be read.
        OptionError: The folder has no question, or `prompts.json` has another form.

    Example:
        >>> questions = read_questions(Path("photos"), prompts=["caption en"])
    """
    if not directory.is_dir():
        problem = "is not a folder" if directory.exists() else "does not exist"
        raise OptionError(f"{directory} {problem}, wanted a folder of images")
    if not (directory / PROMPTS_FILE).exists():
        images, entries = _readable_images(directory, note), list(map(_PromptEntry, prompts))
        return [_question(image, entry, None) for image in images for entry in entries]
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
    if problem := problem_of_file(path):
        raise OptionError(f"{path} {problem}")
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise MismatchError(f"it has more than {_MAX_BYTES >> 20} MiB")
        entries = parse_json(tuple[_Entry, ...], path.read_bytes())
    except OSError as error:
        raise OptionError(f"cannot read {path}: {error.strerror}; wanted {_WANTED}") from None
    except MismatchError as error:
        raise OptionError(f"{path} has another form: {error}; wanted {_WANTED}") from None
    questions = [question for entry in entries for question in _questions_of(directory, entry)]
    if not questions:
        raise OptionError(f"{path} has no prompts, wanted {_WANTED}")
    return questions


def read_masks(path: Path, size: tuple[int, int]) -> NDArray[np.uint8]:
    """The value of the object at each pixel, uint8 [height, width].

    `size` is the width and height of the image that the masks are of. ImageError where they
    cannot be read or are of another size.
    """
    label = image_label(path)
    if problem := problem_of_file(path):
        raise ImageError(f"{label}: {problem}")
    try:
        with Image.open(path, formats=[one.name for one in FORMATS]) as image:
            actual, mode = image.size, image.mode
            values = np.asarray(image) if actual == size and mode in _MASK_MODES else None
    except Exception:  # decoders raise what they like
        raise ImageError(f"{label}: cannot be read, wanted an image of masks") from None
    if values is None:
        raise ImageError(
            f"{label}: {actual[0]} x {actual[1]} pixels in mode {mode}, wanted masks of "
            f"{size[0]} x {size[1]} like their image, with one byte a pixel"
        )
    return values


def _questions_of(directory: Path, entry: _Entry) -> list[Question]:
    masks = None if entry.masks is None else directory / entry.masks
    return [_question(directory / entry.image, prompt, masks) for prompt in entry.questions]


def _question(image: Path, entry: _PromptEntry, masks: Path | None) -> Question:
    task = entry.task or (entry.prompt.split() or [""])[0]
    return Question(
        image=image,
        prompt=entry.prompt,
        task=task,
        text=entry.text,
        objects=entry.objects,
        masks=masks,
    )


def _readable_images(directory: Path, note: Callable[[str], None] | None) -> list[Path]:
    images = []
    for path in _visible_files(directory):
        try:
            load_image(path)
            images.append(path)
        except ImageError as error:
            if note:
                note(f"skipped {error}")
    if not images:
        raise OptionError(f"{directory} holds no readable image, {WANTED}")
    return images


def _visible_files(directory: Path) -> list[Path]:
    try:
        paths = sorted(directory.iterdir())
    except OSError as error:
        raise OptionError(f"cannot read {directory}: {error.strerror}") from None
    return [path for path in paths if path.is_file() and not path.name.startswith(".")]
