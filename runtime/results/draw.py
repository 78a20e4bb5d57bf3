"""Boxes, masks and labels over an image.

A label has one colour in every image. Sizes follow the image, from a thumbnail to 40
megapixels. Knows pixels; knows nothing of models.
"""

from __future__ import annotations

import math
import os
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from paligemma_edge.runtime.errors import OptionError
from paligemma_edge.runtime.results.mask import inside
from paligemma_edge.runtime.text.parse_answer import Box

Mask: TypeAlias = NDArray[np.float32]  # [height, width], 0..1
Colour: TypeAlias = tuple[int, int, int]
Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont
Corners: TypeAlias = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels; x1 and y1 outside

PALETTE: tuple[Colour, ...] = (
    (230, 25, 75),
    (60, 180, 75),
    (255, 215, 25),
    (30, 110, 240),
    (245, 130, 48),
    (145, 50, 200),
    (70, 215, 235),
    (240, 80, 230),
    (190, 235, 60),
    (0, 128, 128),
    (160, 95, 30),
    (250, 170, 190),
)
_BLACK, _WHITE = (0, 0, 0), (255, 255, 255)
_MASK_OPACITY = 0.5
_LONGEST = 200  # characters of a label
_MOST_HIDDEN = 0.3  # share of a label's plate that may cover another label's
_STEPS = 6  # positions for a label, one under the other, that are tried in a crowd
_ROOM = 0.25  # of the image's width, that a label may take beyond its box for its confidence
_HALO = 130  # opacity, of 255, of the contrasting edge of a box


class LabelledBox(Protocol):
    """What is drawn: a `Detection`, or an object of an answer's text."""

    @property
    def label(self) -> str:
        """Its name, in any script; may be empty."""
        ...

    @property
    def xyxy_normalized(self) -> tuple[float, float, float, float]:
        """Corners x0, y0, x1, y1 as shares of the image's width and height, 0..1."""
        ...


@dataclass(frozen=True)
class _Style:
    """Sizes in pixels that suit an image."""

    line: int
    pad: int  # between a label and the edge of its plate
    font: Font
    ascii_only: bool

    @classmethod
    def for_image(cls, width: int, height: int, font: str | os.PathLike[str] | None) -> Self:
        side = math.sqrt(width * height)
        size = max(9, round(side / 38))
        return cls(max(1, round(side / 250)), max(1, size // 5), _font(font, size), font is None)


def draw(
    image: Image.Image,
    objects: Sequence[LabelledBox],
    masks: Iterable[Mask | None] | None = None,
    *,
    font: str | os.PathLike[str] | None = None,
) -> Image.Image:
    """Draw translucent masks, boxes and labels over a copy of an image.

    A label has its confidence beside it where there is room. A box without pixels is left out,
    and so is a label that would hide another.

    Args:
        image: an image of any mode.
        objects: detections; a label has the same colour in every image.
        masks: for each object a soft mask, float32 [height, width] in 0..1, or None. It may be
            a generator: masks are large, and one is used at a time.
        font: a TrueType file. Pillow's own font, used by default, has only ASCII: accents are
            dropped then.

    Returns:
        A new RGB image of the same size.

    Raises:
        OptionError: the number or size of the masks is not right, or the font cannot be read.

    Example:
        >>> draw(Image.open("street.jpg"), model.detect("street.jpg", "car").objects)
    """
    canvas = image.convert("RGB")
    style = _Style.for_image(*canvas.size, font)
    outlined = [(colour_of(o.label), _captions(o), _corners(o, canvas)) for o in objects]
    if masks is not None:
        _draw_masks(canvas, [colour for colour, _, _ in outlined], masks, style.line)
    pen = ImageDraw.Draw(canvas, "RGBA")
    shown = [item for item in outlined if _has_pixels(item[2])]
    for colour, _, corners in shown:
        _draw_box(pen, corners, colour, style.line)
    taken: list[Corners] = []
    for colour, captions, corners in shown:
        if text := _chosen(captions, style, corners, canvas.width):
            plate = _plate_corners(corners, _plate_size(text, style), canvas.size, taken)
            if plate:
                _draw_label(pen, text, plate, colour, style)
                taken.append(plate)
    return canvas


def colour_of(label: str) -> Colour:
    """RGB colour of a label, the same in every image, process and release."""
    name = label.strip().casefold().encode("utf-8", "replace")
    return PALETTE[zlib.crc32(name) % len(PALETTE)]


def text_colour(plate: Colour) -> Colour:
    """Black or white, whichever reads better on a plate; the contrast is at least 4.5 to 1."""
    return max(_BLACK, _WHITE, key=lambda text: contrast(text, plate))


def contrast(one: Colour, other: Colour) -> float:
    """Contrast ratio 1..21 of two sRGB colours, as WCAG 2 defines it."""
    darker, lighter = sorted([_luminance(one), _luminance(other)])
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(colour: Colour) -> float:
    shares = [value / 255 for value in colour]
    linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _font(path: str | os.PathLike[str] | None, size: int) -> Font:
    try:
        return ImageFont.load_default(size) if path is None else ImageFont.truetype(path, size)
    except OSError:
        raise OptionError(f"{os.fspath(path or '')}: not a font, wanted a TrueType file") from None


def _corners(detection: LabelledBox, image: Image.Image) -> Corners:
    return Box.from_xyxy(detection.xyxy_normalized).xyxy_pixels(*image.size)


def _has_pixels(corners: Corners) -> bool:
    x0, y0, x1, y1 = corners
    return x1 > x0 and y1 > y0


def _draw_masks(
    image: Image.Image, colours: Sequence[Colour], masks: Iterable[Mask | None], line: int
) -> None:
    """Translucent masks, and over all of them a line along the edge of each."""
    edges = []
    for colour, mask in _paired(colours, masks):
        if mask is not None and (cropped := _cropped(mask, image)):
            part, x0, y0 = cropped
            opacity = Image.fromarray((part * np.float32(_MASK_OPACITY * 255)).astype(np.uint8))
            image.paste(colour, (x0, y0), opacity)
            edge = _edge(inside(part), line)
            # In bits, for they all wait until the last mask is drawn.
            edges.append((colour, (x0 - line, y0 - line), np.packbits(edge, 1), edge.shape[1]))
            del mask, cropped, part, opacity, edge  # the next one needs their room
    for colour, corner, bits, width in edges:
        solid = np.unpackbits(bits, 1, width) * np.uint8(255)
        image.paste(colour, corner, Image.fromarray(solid))


def _paired(
    colours: Sequence[Colour], masks: Iterable[Mask | None]
) -> Iterator[tuple[Colour, Mask | None]]:
    try:
        yield from zip(colours, masks, strict=True)
    except ValueError:
        raise OptionError(
            f"the masks are not as many as the {len(colours)} objects; give one for each, or None"
        ) from None


def _cropped(mask: Mask, image: Image.Image) -> tuple[Mask, int, int] | None:
    """The nonzero part of a mask and its left and top; None where all is zero."""
    wanted = (image.height, image.width)
    if mask.shape != wanted:
        raise OptionError(f"a mask is {list(mask.shape)}, wanted the image's {list(wanted)}")
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    y0, x0 = int(rows[0]), int(columns[0])
    return mask[y0 : rows[-1] + 1, x0 : columns[-1] + 1], x0, y0


def _edge(within: NDArray[np.bool_], line: int) -> NDArray[np.bool_]:
    """The outermost `line` pixels of an area, with `line` pixels of padding."""
    solid = np.pad(within, line)
    blurred = Image.fromarray(solid * np.uint8(255)).filter(ImageFilter.BoxBlur(line))
    return solid & (np.asarray(blurred) < 255)


def _draw_box(pen: ImageDraw.ImageDraw, corners: Corners, colour: Colour, line: int) -> None:
    """Rectangle along the inside of a box, with a halo that sets it off from the image."""
    x0, y0, x1, y1 = corners
    width = max(1, line // 2)
    halo = (*text_colour(colour), _HALO)
    around = (x0 - width, y0 - width, x1 - 1 + width, y1 - 1 + width)
    pen.rectangle(around, outline=halo, width=width)
    pen.rectangle((x0, y0, x1 - 1, y1 - 1), outline=colour, width=line)


def _fitted(label: str, style: _Style, width: int) -> str:
    """The label in one line, shortened with dots where it is wider than the image."""
    text = " ".join(label.split())
    if style.ascii_only:
        text = "".join(c for c in unicodedata.normalize("NFKD", text) if not _is_accent(c))
    available = width - 2 * style.pad
    short = text[:_LONGEST]
    if short == text and style.font.getlength(text) <= available:
        return text
    while short and style.font.getlength(f"{short}...") > available:
        short = short[:-1]
    return f"{short}..." if short else ""


def _captions(detection: LabelledBox) -> tuple[str, str]:
    """Its label with its confidence, if it has one, and its label alone."""
    confidence = getattr(detection, "confidence", None)
    label = detection.label
    return label if confidence is None else f"{label} {confidence:.2f}".lstrip(), label


def _chosen(captions: tuple[str, str], style: _Style, corners: Corners, width: int) -> str:
    """The longer text where there is room for it, else the shorter."""
    longer, shorter = (_fitted(caption, style, width) for caption in captions)
    room = max(corners[2] - corners[0], width * _ROOM)
    return longer if style.font.getlength(longer) + 2 * style.pad <= room else shorter


def _is_accent(character: str) -> bool:
    return unicodedata.combining(character) > 0


def _plate_size(text: str, style: _Style) -> tuple[int, int]:
    left, _, right, _ = style.font.getbbox(text)
    _, top, _, bottom = style.font.getbbox("lgj")
    return math.ceil(right - left) + 2 * style.pad, math.ceil(bottom - top) + 2 * style.pad


def _plate_corners(
    corners: Corners, plate: tuple[int, int], size: tuple[int, int], taken: Sequence[Corners]
) -> Corners | None:
    """Corners of a label's plate: above its box, else within, else below, where most is free.

    None where it would hide another label: labels over each other are unreadable.
    """
    x0, y0, x1, y1 = corners
    width, height = plate
    furthest = max(size[0] - width, 0)
    lefts = [min(max(x, 0), furthest) for x in (x0, x1 - width)]
    further_down = [y0 + step * height for step in range(1, _STEPS)]
    heights = [y0 - height, y0, y1, y1 - height, *(y for y in further_down if y < y1)]
    tops = [y for y in heights if 0 <= y <= size[1] - height] or [0]
    options = [(x, y, x + width, y + height) for y in tops for x in lefts]
    hidden = {option: max((_hidden(t, option) for t in taken), default=0) for option in options}
    best = min(options, key=lambda option: hidden[option])
    return best if hidden[best] <= _MOST_HIDDEN else None


def _hidden(plate: Corners, over: Corners) -> float:
    """Share of a plate that another one would cover."""
    width = min(plate[2], over[2]) - max(plate[0], over[0])
    height = min(plate[3], over[3]) - max(plate[1], over[1])
    whole = (plate[2] - plate[0]) * (plate[3] - plate[1])
    return max(width, 0) * max(height, 0) / whole


def _draw_label(
    pen: ImageDraw.ImageDraw, text: str, plate: Corners, colour: Colour, style: _Style
) -> None:
    x0, y0, x1, y1 = plate
    left, top = style.font.getbbox(text)[0], style.font.getbbox("lgj")[1]
    pen.rectangle((x0, y0, x1 - 1, y1 - 1), fill=colour)
    pen.text((x0 + style.pad - left, y0 + style.pad - top), text, text_colour(colour), style.font)
