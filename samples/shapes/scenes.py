"""Draws scenes, which are images of coloured shapes and short words, from a seed.

Knows geometry and pixels: a scene has its image and what is where in it. Knows nothing of prompts,
tokens or models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Split: TypeAlias = Literal["train", "held_out"]
Plane: TypeAlias = NDArray[np.float64]
# y0, x0, y1, x1 in pixels; y1 and x1 are the first row and column outside.
Box: TypeAlias = tuple[int, int, int, int]

SIDE = 112
SPLITS: tuple[Split, ...] = ("train", "held_out")
KINDS = ("circle", "square", "triangle", "diamond", "cross", "star", "ring", "heart")
COLOURS = {
    "red": (215, 30, 35),
    "green": (30, 150, 50),
    "blue": (35, 70, 215),
    "yellow": (240, 220, 40),
    "orange": (245, 135, 20),
    "purple": (130, 35, 160),
    "white": (250, 250, 250),
    "black": (8, 8, 8),
}
SIZES = {"small": (19, 26), "large": (36, 46)}  # shortest and longest side, in pixels
WORD_SHARE: Mapping[Split, float] = {"train": 0.35, "held_out": 0.22}  # of scenes have a word
WORDS = tuple(Path(__file__).with_name("words.txt").read_text(encoding="utf-8").split())
_GAP = 4  # free pixels between two shapes, or a shape and a word
_APART = 9  # pixels between two centres along x, so that "left to right" is never a close call


@dataclass(frozen=True)
class Shape:
    """One shape of a scene."""

    kind: str
    colour: str
    size: str
    box: Box

    @property
    def centre(self) -> tuple[float, float]:
        """Row and column of the box's centre."""
        y0, x0, y1, x1 = self.box
        return (y0 + y1) / 2, (x0 + x1) / 2


@dataclass(frozen=True)
class Word:
    """A word of a scene, with the box of each letter."""

    text: str
    box: Box
    letters: tuple[Box, ...]


@dataclass(frozen=True)
class Scene:
    """Pixels and what they show; shapes are in order from left to right."""

    pixels: NDArray[np.uint8]  # [SIDE, SIDE, 3]
    owner: NDArray[np.uint8]  # [SIDE, SIDE]: 0 for the background and the word, i + 1 for shape i
    shapes: tuple[Shape, ...]
    word: Word | None

    def mask(self, index: int) -> NDArray[np.bool_]:
        """The pixels of one shape, [SIDE, SIDE]."""
        owned: NDArray[np.bool_] = self.owner == index + 1
        return owned

    def image(self) -> Image.Image:
        """The pixels as a Pillow image."""
        return Image.fromarray(self.pixels)


def draw(split: Split, number: int) -> Scene:
    """Scene `number` of a split, the same on every call; the splits share no seed."""
    rng = np.random.default_rng([SPLITS.index(split), number])
    return _word_scene(rng) if rng.random() < WORD_SHARE[split] else _shape_scene(rng)


@cache
def silhouette(kind: str, height: int, width: int) -> NDArray[np.bool_]:
    """The pixels of a shape in a box of that size, cut to the rows and columns that it touches."""
    v, u = np.meshgrid(_centres(height), _centres(width), indexing="ij")
    mask = _inside(kind, u, v)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    cut = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    cut.setflags(write=False)
    return cut


def _centres(count: int) -> NDArray[np.float64]:
    """Pixel centres of a side, from -1 to 1."""
    return (2 * np.arange(count) + 1) / count - 1


def _inside(kind: str, u: Plane, v: Plane) -> NDArray[np.bool_]:
    """Whether a point of the square (-1, 1)² belongs to a shape; v grows downwards."""
    if kind not in _INSIDE:
        raise ValueError(f"unknown kind of shape {kind!r}; known: {', '.join(KINDS)}")
    return _INSIDE[kind](u, v)


def _inside_ring(u: Plane, v: Plane) -> NDArray[np.bool_]:
    r2 = u * u + v * v
    return (r2 <= 1) & (r2 >= 0.3)


def _inside_star(x: Plane, y: Plane) -> NDArray[np.bool_]:
    """A pentagram holds the points that at most one of its five lines cuts off."""
    angles = [2 * math.pi * k / 5 + math.pi / 2 for k in range(5)]
    inner = math.cos(2 * math.pi / 5)
    within = [math.cos(a) * x + math.sin(a) * y <= inner for a in angles]
    kept: NDArray[np.bool_] = np.sum(within, axis=0) >= 4
    return kept


def _inside_heart(x: Plane, y: Plane) -> NDArray[np.bool_]:
    return (x * x + y * y - 1) ** 3 - x * x * y**3 <= 0


_INSIDE: Mapping[str, Callable[[Plane, Plane], NDArray[np.bool_]]] = {
    "circle": lambda u, v: u * u + v * v <= 1,
    "square": lambda u, _: np.ones_like(u, dtype=np.bool_),
    "triangle": lambda u, v: np.abs(u) <= (v + 1) / 2,
    "diamond": lambda u, v: np.abs(u) + np.abs(v) <= 1,
    "cross": lambda u, v: np.minimum(np.abs(u), np.abs(v)) <= 0.36,
    "star": lambda u, v: _inside_star(u * 0.951, v * 0.9045 - 0.0955),
    "ring": _inside_ring,
    "heart": lambda u, v: _inside_heart(u * 1.14, 0.12 - v * 1.12),
}


def _shape_scene(rng: np.random.Generator) -> Scene:
    count = int(rng.choice([1, 2, 3], p=[0.35, 0.4, 0.25]))
    placed: list[tuple[Shape, NDArray[np.bool_]]] = []
    while len(placed) < count:
        shape, mask = _random_shape(rng, small=count == 3, like=[s for s, _ in placed])
        if _fits(shape, [s for s, _ in placed]):
            placed.append((shape, mask))
        elif rng.random() < 0.02:  # a crowded start: begin again
            placed = []
    return _paint(rng, sorted(placed, key=lambda pair: pair[0].centre[1]), None)


def _random_shape(
    rng: np.random.Generator, *, small: bool, like: list[Shape]
) -> tuple[Shape, NDArray[np.bool_]]:
    """A shape anywhere; now and then of the kind or the colour of one that is already there."""
    kind, colour = str(rng.choice(KINDS)), str(rng.choice(list(COLOURS)))
    if like and rng.random() < 0.3:
        kind = like[0].kind
    if like and rng.random() < 0.3:
        colour = like[0].colour
    size = "small" if small and rng.random() < 0.7 else str(rng.choice(list(SIZES)))
    low, high = SIZES[size]
    mask = silhouette(kind, int(rng.integers(low, high + 1)), int(rng.integers(low, high + 1)))
    height, width = mask.shape
    y, x = int(rng.integers(1, SIDE - height)), int(rng.integers(1, SIDE - width))
    return Shape(kind, colour, size, (y, x, y + height, x + width)), mask


def _fits(shape: Shape, others: list[Shape]) -> bool:
    return not any(
        _near(shape.box, other.box) or abs(shape.centre[1] - other.centre[1]) < _APART
        for other in others
    )


def _near(a: Box, b: Box) -> bool:
    return a[0] < b[2] + _GAP and b[0] < a[2] + _GAP and a[1] < b[3] + _GAP and b[1] < a[3] + _GAP


def _word_scene(rng: np.random.Generator) -> Scene:
    """A word, mostly with one shape clearly above or below it."""
    word, size = _random_word(rng)
    if rng.random() < 0.3:
        return _paint(rng, [], (word, size))
    for _ in range(50):
        shape, mask = _random_shape(rng, small=False, like=[])
        if shape.box[2] + _GAP <= word.box[0] or word.box[2] + _GAP <= shape.box[0]:
            return _paint(rng, [(shape, mask)], (word, size))
    return _paint(rng, [], (word, size))


def _random_word(rng: np.random.Generator) -> tuple[Word, int]:
    """A word somewhere, in letters as large as its length allows."""
    text, size = str(rng.choice(WORDS)), int(rng.integers(26, 34))
    while _word_width(text, size) > SIDE - 4:
        size -= 1
    height, width = _glyph(text[0], size).shape[0], _word_width(text, size)
    y, x = int(rng.integers(1, SIDE - height)), int(rng.integers(1, SIDE - width))
    letters: list[Box] = []
    left = x
    for letter in text:
        right = left + _glyph(letter, size).shape[1]
        letters.append((y, left, y + height, right))
        left = right + 1
    return Word(text, (y, x, y + height, x + width), tuple(letters)), size


def _word_width(text: str, size: int) -> int:
    return sum(int(_glyph(letter, size).shape[1]) for letter in text) + len(text) - 1


@cache
def _glyph(letter: str, size: int) -> NDArray[np.float32]:
    """Coverage of a capital letter, [height, width], in Pillow's own font."""
    font = ImageFont.load_default(size)
    canvas = Image.new("L", (2 * size, 2 * size))
    ImageDraw.Draw(canvas).text((size // 2, size // 2), letter, fill=255, font=font)
    ink = np.asarray(canvas, dtype=np.float32) / np.float32(255)
    columns = np.flatnonzero(ink.max(axis=0) > 0)
    top = size // 2 + _cap_top(size)
    return ink[top : top + round(0.8 * size), columns[0] : columns[-1] + 1]


@cache
def _cap_top(size: int) -> int:
    """Rows above a capital letter."""
    return int(ImageFont.load_default(size).getbbox("E")[1])


def _paint(
    rng: np.random.Generator,
    placed: list[tuple[Shape, NDArray[np.bool_]]],
    word: tuple[Word, int] | None,
) -> Scene:
    canvas = _background(rng)
    owner = np.zeros((SIDE, SIDE), dtype=np.uint8)
    for index, (shape, mask) in enumerate(placed):
        y0, x0, y1, x1 = shape.box
        owner[y0:y1, x0:x1][mask] = index + 1
        canvas[y0:y1, x0:x1][mask] = _tint(rng, shape.colour)
    if word is not None:
        _write(canvas, *word, _tint(rng, str(rng.choice(["black", "white"]))))
    canvas += 3 * rng.standard_normal(canvas.shape, dtype=np.float32)
    pixels = np.clip(np.rint(canvas), 0, 255).astype(np.uint8)
    return Scene(pixels, owner, tuple(shape for shape, _ in placed), word[0] if word else None)


def _tint(rng: np.random.Generator, colour: str) -> NDArray[np.float32]:
    return (np.asarray(COLOURS[colour]) + rng.integers(-12, 13, 3)).astype(np.float32)


def _write(canvas: NDArray[np.float32], word: Word, size: int, ink: NDArray[np.float32]) -> None:
    for letter, (y0, x0, y1, x1) in zip(word.text, word.letters, strict=True):
        cover = _glyph(letter, size)[:, :, None]
        canvas[y0:y1, x0:x1] = (1 - cover) * canvas[y0:y1, x0:x1] + cover * ink


def _background(rng: np.random.Generator) -> NDArray[np.float32]:
    """Two dull tones mixed by a texture, [SIDE, SIDE, 3]."""
    grey = rng.integers(95, 181)
    one, two = (
        (grey + rng.integers(-16, 17, 3) + rng.integers(-14, 15)).astype(np.float32)
        for _ in range(2)
    )
    return one + _texture(rng)[:, :, None] * (two - one)


def _texture(rng: np.random.Generator) -> NDArray[np.float32]:
    """One of five patterns with values from 0 to 1, [SIDE, SIDE]."""
    y, x = _places()
    angle, phase = rng.uniform(0, 2 * math.pi, 2)
    along = np.float32(math.cos(angle)) * x + np.float32(math.sin(angle)) * y
    match int(rng.integers(5)):
        case 0:
            return rng.random((SIDE, SIDE), dtype=np.float32)
        case 1:
            return (along + np.float32(1.5)) / np.float32(3)
        case 2:
            rate = np.float32(rng.uniform(12, 60))
            waves: NDArray[np.float32] = np.sin(along * rate + np.float32(phase))
            return (waves + np.float32(1)) / np.float32(2)
        case 3:
            cell = int(rng.integers(5, 15))
            cells: NDArray[np.float32] = (y * SIDE // cell + x * SIDE // cell) % 2
            return cells
        case _:
            spots = Image.fromarray(rng.random((6, 6), dtype=np.float32))
            return np.asarray(spots.resize((SIDE, SIDE), Image.Resampling.BILINEAR))


@cache
def _places() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Row and column of every pixel, from 0 to 1."""
    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32) / SIDE
    return y, x
