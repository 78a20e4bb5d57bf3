"""Images that need no file: what `verify` asks about, the first of them in every bundle."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw

_SIZES = ((357, 240), (181, 299), (640, 427))  # width, height: none is square, none a resolution
_GRAIN = 8  # of 255

DRAWN_IMAGES = len(_SIZES)


def drawn_image(number: int) -> Image.Image:
    """Colour gradients with grain and a few outlined shapes: smooth areas and sharp edges.

    Without the grain most pixels would be nearly the same whatever the filter that enlarges them.
    """
    width, height = _SIZES[number]
    x = np.linspace(0, 1, width)[None, :]
    y = np.linspace(0, 1, height)[:, None]
    channels = (x + 0 * y, 0 * x + y, 0.5 + 0.5 * np.sin((3 + number) * np.pi * (x + y)))
    rotated = [channels[(number + place) % 3] for place in range(3)]
    grain = np.random.default_rng(number).integers(-_GRAIN, _GRAIN + 1, (height, width, 1))
    pixels = np.rint(np.stack(rotated, axis=-1) * 255) + grain
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
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
