"""An answer as an image: its overlay, and what a notebook shows of it.

Knows pixels and HTML. Trusts no text: an answer may hold any text that an image shows.
"""

from __future__ import annotations

import base64
import html as markup
from collections.abc import Sequence
from io import BytesIO

from PIL import Image

from paligemma_edge.runtime.errors import OptionError
from paligemma_edge.runtime.results.detection import Detection
from paligemma_edge.runtime.results.draw import draw
from paligemma_edge.runtime.results.mask import paste_mask
from paligemma_edge.runtime.text.parse_answer import Box

_LONGEST = 1200  # pixels of a side that a notebook is sent
_SMALL = 240  # pixels of a side below which an image is shown larger, in whole steps
_STRETCHED = 1.05  # how much a side may have grown more than the other: pixels are whole
_LOSSLESS = 256 * 256  # pixels up to which PNG is small


def overlay(
    detections: Sequence[Detection], image: Image.Image | None, width: int, height: int
) -> Image.Image:
    """An image of any size with detections of one of `width` x `height` drawn over it, RGB.

    OptionError where there is no image, or where it has another shape.
    """
    if image is None:
        raise OptionError(
            "the answer kept no image to draw on; give the image that the prompt was about"
        )
    shape = (image.width * height) / (image.height * width)
    if not 1 / _STRETCHED < shape < _STRETCHED:
        raise OptionError(
            f"the image has {image.width} x {image.height} pixels, the answer is about one of "
            f"{width} x {height}; give the image that the prompt was about, in any size"
        )
    return _drawn(detections, image)


def html(image: Image.Image | None, text: str) -> str | None:
    """An image with a text under it; None, so that the notebook prints, without an image."""
    return None if image is None else _figure(_shrunk(image), text)


def detections_html(
    detections: Sequence[Detection], image: Image.Image | None, text: str
) -> str | None:
    """The overlay with a text under it; None without an image."""
    return None if image is None else _figure(_drawn(detections, _shrunk(image)), text)


def _drawn(detections: Sequence[Detection], image: Image.Image) -> Image.Image:
    """Detections over an image of any size, one mask in memory at a time."""
    masks = (
        None if mask is None else paste_mask(mask, Box.from_xyxy(corners), *image.size)
        for mask, corners in ((one.decoded_mask, one.xyxy_normalized) for one in detections)
    )
    return draw(image, detections, masks)


def _shrunk(image: Image.Image) -> Image.Image:
    """The image as RGB, no side longer than a notebook needs."""
    share = min(_LONGEST / max(image.size), 1)
    width, height = (max(round(side * share), 1) for side in image.size)
    return image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS, reducing_gap=2.0)


def _figure(image: Image.Image, text: str) -> str:
    step = max(2 * _SMALL // max(image.size), 1) if max(image.size) < _SMALL else 1
    style = "max-width:100%;height:auto" + (";image-rendering:pixelated" if step > 1 else "")
    return (
        f'<figure style="margin:0"><img src="{_data_uri(image)}" alt="" '
        f'width="{image.width * step}" style="{style}">'
        f'<figcaption style="white-space:pre-wrap">{markup.escape(text)}</figcaption></figure>'
    )


def _data_uri(image: Image.Image) -> str:
    """The image inside an address; a large one as JPEG that keeps coloured lines sharp."""
    data = BytesIO()
    kind = "png" if image.width * image.height <= _LOSSLESS else "jpeg"
    image.save(data, kind, **({"quality": 90, "subsampling": 0} if kind == "jpeg" else {}))
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode('ascii')}"
