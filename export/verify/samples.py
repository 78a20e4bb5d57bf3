"""The questions that a bundle and its original are both asked: drawn here, or read from a folder.

Knows images and prompts. Knows nothing of a model, nor of a true answer.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from paligemma_edge.quantize.fidelity.questions import parse_prompts
from paligemma_edge.runtime.images.load import ImageInput

_SIZES = ((357, 240), (181, 299), (640, 427))  # width, height: none is square, none a resolution
_PROMPTS = ("caption en", "detect cat", "answer en what is this?")


DEFAULT_MAX_NEW_TOKENS = 32  # of each answer; the original runs in float32, so each one counts


@dataclass(frozen=True)
class Sample:
    """A prompt about one image or several, each of a kind that `runtime.images.load` reads."""

    images: tuple[ImageInput, ...]
    prompt: str


def default_samples() -> list[Sample]:
    """Three drawn images, three prompts about each; the same ones every time."""
    images = [_draw(number, *size) for number, size in enumerate(_SIZES)]
    return [Sample((p,), prompt) for p, prompt in itertools.product(images, _PROMPTS)]


def read_samples(directory: Path) -> list[Sample]:
    """Every prompt of a folder's `prompts.json`, with the image beside it that it is about.

    OptionError where the file is absent or of another form.
    """
    return [Sample((question.image,), question.prompt) for question in parse_prompts(directory)]


def _draw(number: int, width: int, height: int) -> Image.Image:
    """Colour gradients that meet, with a few outlined shapes: smooth parts and sharp edges."""
    x = np.linspace(0, 1, width)[None, :]
    y = np.linspace(0, 1, height)[:, None]
    channels = (x + 0 * y, 0 * x + y, 0.5 + 0.5 * np.sin((3 + number) * np.pi * (x + y)))
    turned = [channels[(number + place) % 3] for place in range(3)]
    image = Image.fromarray(np.rint(np.stack(turned, axis=-1) * 255).astype(np.uint8))
    canvas = ImageDraw.Draw(image)
    for colour, box in _boxes(number, width, height).items():
        canvas.ellipse(box, fill=colour, outline="black", width=3)
        canvas.rectangle([edge // 2 for edge in box], outline=colour, width=5)
    return image


def _boxes(number: int, width: int, height: int) -> Mapping[str, list[int]]:
    left, top = width // (3 + number), height // (4 - number)
    return {
        "white": [left, top, left + width // 3, top + height // 3],
        "red": [width // 2, height // 8, width - 9, height // 2],
    }
