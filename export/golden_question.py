"""The golden question of a new bundle: how the original reads it, and which ids end an answer.

The answer is `verify`'s to ask: it takes the whole model in memory, on a device of its variant. The
rest takes neither, and tells a manifest that was changed after the export.
"""

from __future__ import annotations

import io
from collections.abc import Mapping

from PIL import Image

from paligemma_edge.export.drawn_image import drawn_image
from paligemma_edge.runtime.bundle.golden import GOLDEN, GOLDEN_IMAGE, Golden, pixel_grid
from paligemma_edge.runtime.images.preprocess import pixel_values
from paligemma_edge.runtime.manifest import ImageConfig
from paligemma_edge.runtime.text.tokenizer import PromptEncoder

GOLDEN_PROMPT = "caption en"


def golden_question(config: ImageConfig, encoder: PromptEncoder) -> Mapping[str, bytes]:
    """The files of a bundle that hold the question, without an answer."""
    image = drawn_image(0)
    golden = Golden(
        image=GOLDEN_IMAGE,
        prompt=GOLDEN_PROMPT,
        pixel_grid=pixel_grid(pixel_values(image, config)),
        prompt_ids=encoder.encode(GOLDEN_PROMPT, 1),
        eos_ids=encoder.config.eos_ids,
        answer=None,
    )
    return golden_files(golden, image)


def golden_files(golden: Golden, image: Image.Image) -> Mapping[str, bytes]:
    """A golden question and the RGB image that it is about as files of a bundle."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return {GOLDEN: golden.to_json(), golden.image: file.getvalue()}
