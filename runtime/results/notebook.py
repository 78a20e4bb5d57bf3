"""An answer as an image: its overlay, and what a notebook shows of it.

Knows pixels and HTML. Trusts no text: an answer may hold whatever stands in an image.
"""

from __future__ import annotations

import base64
import html as markup
import math
from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING

from PIL import Image

from paligemma_edge.runtime.errors import OptionError
from paligemma_edge.runtime.images.load import ImageInput, load_image
from paligemma_edge.runtime.results.draw import draw
from paligemma_edge.runtime.results.mask import paste_mask

if TYPE_CHECKING:
    from paligemma_edge.runtime.results.result import Detection, ObjectResult

_LONGEST = 1200  # pixels of a side that a notebook is sent
_SMALL = 240  # pixels of a side below which an image is shown larger, in whole steps
_STRETCHED = 1.05  # how much a side may have grown more than the other: pixels are whole
_LOSSLESS = 256 * 256  # pixels up to which PNG takes little room


def overlay(result: ObjectResult, image: ImageInput | None = None) -> Image.Image:
    """The image with the objects of an answer drawn over it, RGB.

    `image` stands for the one that the answer kept, in any size, and is read as the model
    reads it. OptionError where there is none, or where it has another shape.
    """
    shown = result.image if image is None else load_image(image)
    if shown is None:
        raise OptionError(
            "the answer kept no image to draw on, wanted the one that was asked about; give it"
        )
    shape = (shown.width * result.height) / (shown.height * result.width)
    if not 1 / _STRETCHED < shape < _STRETCHED:
        raise OptionError(
            f"the image has {shown.width} x {shown.height} pixels, the answer is about one of "
            f"{result.width} x {result.height}; give the one that was asked about, in any size"
        )
    return _drawn(result.objects, shown)


def html(image: Image.Image | None, text: str) -> str | None:
    """An image with a text under it; None, so that the notebook prints, without an image."""
    return None if image is None else _figure(_shrunk(image), text)


def objects_html(result: ObjectResult) -> str | None:
    """The overlay with labels and shares under it; None without an image."""
    if result.image is None:
        return None
    return _figure(_drawn(result.objects, _shrunk(result.image)), _caption(result))


def _drawn(objects: Sequence[Detection], image: Image.Image) -> Image.Image:
    """Objects over an image of any size, one mask in memory at a time."""
    masks = (
        None if found.decoded is None else paste_mask(found.decoded, found.box, *image.size)
        for found in objects
    )
    return draw(image, [found.detection for found in objects], masks)


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


def _caption(result: ObjectResult) -> str:
    """What was found, or what the model said instead; then what a user should know."""
    names = (f"{found.label} {math.exp(found.score):.0%}".strip() for found in result.objects)
    said = ", ".join(names) or result.text.strip() or "nothing found"
    cut = ["the answer was cut by the token limit"] if result.truncated else []
    return "\n".join([said, *cut, *result.notes])
