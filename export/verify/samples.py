"""The samples that a bundle and its original both answer: generated, or read from a directory.

Knows images and prompts. Knows no model and no correct answers.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

from paligemma_edge.export.drawn_image import DRAWN_IMAGES, drawn_image
from paligemma_edge.export.golden_question import GOLDEN_PROMPT
from paligemma_edge.quantize.fidelity.questions import parse_prompts
from paligemma_edge.runtime.images.load import ImageInput

_PROMPTS = (GOLDEN_PROMPT, "detect cat", "answer en what is this?")


DEFAULT_MAX_NEW_TOKENS = 32  # of each answer; few, for the original is slow in float32


@dataclass(frozen=True)
class Sample:
    """A prompt about one image or several.

    Attributes:
        images: Paths, bytes of image files, PIL images, or uint8 RGB arrays [height, width, 3].
        prompt: The text after the images, as "caption en"; without <bos> and newline.

    Example:
        >>> Sample(("photo.jpg",), "detect cat")
    """

    images: tuple[ImageInput, ...]
    prompt: str


def default_samples() -> list[Sample]:
    """Three generated images with three prompts each; the same ones every time."""
    images = [drawn_image(number) for number in range(DRAWN_IMAGES)]
    return [Sample((p,), prompt) for p, prompt in itertools.product(images, _PROMPTS)]


def read_samples(directory: Path) -> list[Sample]:
    """Read the prompts of a directory's `prompts.json`, each with its image.

    Args:
        directory: Holds `prompts.json` and the images that it names.

    Returns:
        One sample for each prompt, in the order of the file.

    Raises:
        OptionError: `prompts.json` is missing or not valid.

    Example:
        >>> samples = read_samples(Path("samples/images"))
        >>> verify("mix.bundle", "paligemma-3b-mix-224", samples=samples)
    """
    return [Sample((question.image,), question.prompt) for question in parse_prompts(directory)]
