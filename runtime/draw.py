"""Boxes, masks and labels over a picture.

A label has one colour in every picture. Sizes follow the picture, from a thumbnail to 40
megapixels. Knows pixels; knows nothing of models.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from paligemma_edge.runtime.answer import Detection
from paligemma_edge.runtime.errors import OptionError
from paligemma_edge.runtime.mask import inside

Mask: TypeAlias = NDArray[np.float32]  # [height, width], 0..1
Colour: TypeAlias = tuple[int, int, int]
Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont

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
_VEIL = 0.45  # how much of a mask's colour lies over the picture
_HALO = 130  # of 255: how dark or light the rim of a line is


class _Style(NamedTuple):
    line: int  # pixels
    font: Font
    pad: int  # pixels between a label and the rim of its plate


def draw(
    image: Image.Image, detections: Sequence[Detection], masks: Sequence[Mask | None] | None = None
) -> Image.Image:
    """Copy of an RGB picture with translucent masks, boxes and labels.

    `masks` holds a soft mask [height, width] or None for each detection. OptionError if
    their number or size is another. A box without pixels is left out.
    """
    soft = _checked(masks, len(detections), image)
    picture = image.convert("RGB")
    style = _style(picture)
    colours = [colour_of(detection.label) for detection in detections]
    for mask, colour in zip(soft, colours, strict=True):
        if mask is not None:
            _draw_mask(picture, mask, colour, style.line)
    pen = ImageDraw.Draw(picture, "RGBA")
    for detection, colour in zip(detections, colours, strict=True):
        _draw_box(pen, detection, colour, style.line)
    taken: list[tuple[int, int, int, int]] = []
    for detection, colour in zip(detections, colours, strict=True):
        _draw_label(pen, detection, colour, style, taken)
    return picture


def colour_of(label: str) -> Colour:
    """Colour of a label, the same in every picture, process and release."""
    return PALETTE[zlib.crc32(label.strip().casefold().encode("utf-8", "replace")) % len(PALETTE)]


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


def _checked(
    masks: Sequence[Mask | None] | None, count: int, image: Image.Image
) -> Sequence[Mask | None]:
    soft = [None] * count if masks is None else masks
    if len(soft) != count:
        raise OptionError(f"there are {len(soft)} masks for {count} detections; give one for each")
    wanted = (image.height, image.width)
    for mask in soft:
        if mask is not None and mask.shape != wanted:
            raise OptionError(f"a mask is {list(mask.shape)}, wanted the picture's {list(wanted)}")
    return soft


def _style(image: Image.Image) -> _Style:
    side = math.sqrt(image.width * image.height)
    size = max(9, round(side / 38))
    font = ImageFont.load_default(size)
    return _Style(line=max(1, round(side / 350)), font=font, pad=max(1, size // 5))


def _draw_mask(picture: Image.Image, mask: Mask, colour: Colour, line: int) -> None:
    """Veil of the soft mask, and a line along the rim of what is inside."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return
    y0, y1, x0, x1 = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    part = mask[y0:y1, x0:x1]
    veil = Image.fromarray((part * (_VEIL * 255)).astype(np.uint8))
    picture.paste(colour, (int(x0), int(y0)), veil)
    picture.paste(colour, (int(x0) - line, int(y0) - line), _rim(inside(part), line))


def _rim(within: NDArray[np.bool_], line: int) -> Image.Image:
    """Line of `line` pixels just inside the rim, 0 or 255; the picture is `line` larger around."""
    solid = Image.fromarray(np.pad(within, line).astype(np.uint8) * 255)
    blurred = np.asarray(solid.filter(ImageFilter.BoxBlur(line)))
    return Image.fromarray(((blurred < 255) & (np.asarray(solid) > 0)).astype(np.uint8) * 255)


def _draw_box(pen: ImageDraw.ImageDraw, detection: Detection, colour: Colour, line: int) -> None:
    width, height = pen.im.size
    y0, x0, y1, x1 = detection.box.pixels(width, height)
    if y1 <= y0 or x1 <= x0:
        return
    rim = max(1, line // 2)
    halo = (*text_colour(colour), _HALO)
    pen.rectangle((x0 - rim, y0 - rim, x1 - 1 + rim, y1 - 1 + rim), outline=halo, width=rim)
    pen.rectangle((x0, y0, x1 - 1, y1 - 1), outline=colour, width=line)


def _draw_label(
    pen: ImageDraw.ImageDraw,
    detection: Detection,
    colour: Colour,
    style: _Style,
    taken: list[tuple[int, int, int, int]],
) -> None:
    size = pen.im.size
    y0, x0, y1, x1 = detection.box.pixels(*size)
    text = _fitted(" ".join(detection.label.split()), style, size[0])
    if not text or y1 <= y0 or x1 <= x0:
        return
    left, top, right, bottom = style.font.getbbox(text)
    width, height = math.ceil(right - left) + 2 * style.pad, _plate_height(style)
    corner = _place((y0, x0, y1, x1), (width, height), size, taken)
    plate = (*corner, corner[0] + width - 1, corner[1] + height - 1)
    taken.append(plate)
    pen.rectangle(plate, fill=colour)
    middle = corner[1] + height // 2
    pen.text((corner[0] + style.pad - left, middle), text, text_colour(colour), style.font, "lm")


def _plate_height(style: _Style) -> int:
    _, top, _, bottom = style.font.getbbox("Ag")
    return math.ceil(bottom - top) + 2 * style.pad


def _fitted(text: str, style: _Style, width: int) -> str:
    """The text, cut with dots where it is wider than the picture."""
    room = width - 2 * style.pad
    if style.font.getlength(text[:500]) <= room and len(text) <= 500:
        return text
    short = text[:500]
    while short and style.font.getlength(f"{short}...") > room:
        short = short[:-1]
    return f"{short}..." if short else ""


def _place(
    box: tuple[int, int, int, int],
    plate: tuple[int, int],
    size: tuple[int, int],
    taken: list[tuple[int, int, int, int]],
) -> tuple[int, int]:
    """Corner x, y of a plate at its box: above, else inside, else below; free if possible."""
    y0, x0, y1, x1 = box
    width, height = plate
    lines = (y0 - height, y0, y1, y1 - height)
    corners = [(x, y) for y in lines for x in (x0, x1 - width)]
    within = [(min(max(x, 0), max(size[0] - width, 0)), y) for x, y in corners]
    shown = [(x, y) for x, y in within if 0 <= y <= size[1] - height]
    free = [c for c in shown if not any(_overlap(c, plate, other) for other in taken)]
    return (free or shown or [(within[0][0], 0)])[0]


def _overlap(
    corner: tuple[int, int], plate: tuple[int, int], other: tuple[int, int, int, int]
) -> bool:
    x0, y0, x1, y1 = other
    return (
        corner[0] <= x1
        and corner[0] + plate[0] > x0
        and corner[1] <= y1
        and corner[1] + plate[1] > y0
    )
