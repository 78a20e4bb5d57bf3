"""What the typed calls return: words, objects or a choice, each with its score.

The score of words and of objects is the mean log-probability that the model gave to their tokens,
before any grammar or temperature; that of a choice is the logarithm of its share. `exp(score)`
lies in 0..1. Knows answers and pixels. Knows nothing of a model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from paligemma_edge.runtime.results import formats as convert
from paligemma_edge.runtime.results import notebook
from paligemma_edge.runtime.results.mask import inside, paste_mask
from paligemma_edge.runtime.text.parse_answer import Box, ParsedObject

if TYPE_CHECKING:
    import supervision
    from PIL import Image

    from paligemma_edge.runtime.images.load import ImageInput


@dataclass(frozen=True, kw_only=True)
class TextResult:
    """Words: a caption, an answer, what is written in an image. `str()` gives the text."""

    prompt: str
    text: str
    score: float
    truncated: bool  # cut by the token limit
    image: Image.Image | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        return self.text

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON."""
        return {
            "prompt": self.prompt,
            "text": self.text,
            "score": convert.finite(self.score),
            "truncated": self.truncated,
        }

    def _repr_html_(self) -> str | None:
        return notebook.html(self.image, self.text)


@dataclass(frozen=True, kw_only=True)
class ChoiceResult:
    """One of a closed set of answers, and how likely the model held each of them.

    `log_probs` are sums over an answer's tokens, its end included; `probabilities` are those,
    normalised over the set.
    """

    prompt: str
    text: str
    log_probs: Mapping[str, float]  # in the order in which the choices were given
    image: Image.Image | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        return self.text

    @property
    def probabilities(self) -> dict[str, float]:
        """Share of each choice, 0..1; together 1."""
        weights = {choice: math.exp(value) for choice, value in self._relative.items()}
        total = sum(weights.values())
        return {choice: weight / total for choice, weight in weights.items()}

    @property
    def score(self) -> float:
        """Logarithm of the chosen answer's share; finite where the share rounds to zero."""
        relative = self._relative
        return relative[self.text] - math.log(sum(map(math.exp, relative.values())))

    @property
    def _relative(self) -> dict[str, float]:
        """Log-probabilities less the largest: their exponentials do not all vanish."""
        peak = max(self.log_probs.values())
        return {choice: value - peak for choice, value in self.log_probs.items()}

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON."""
        return {
            "prompt": self.prompt,
            "text": self.text,
            "score": convert.finite(self.score),
            "log_probs": {choice: convert.finite(v) for choice, v in self.log_probs.items()},
            "probabilities": self.probabilities,
        }

    def _repr_html_(self) -> str | None:
        shares = (f"{choice} {share:.1%}" for choice, share in self.probabilities.items())
        return notebook.html(self.image, ", ".join(shares))


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Detection:
    """One object in an image of `width` x `height` pixels."""

    detection: ParsedObject
    score: float  # of this object's tokens alone
    width: int
    height: int
    decoded: NDArray[np.float32] | None = None  # [64, 64], about -1..1; inside where above 0

    def __repr__(self) -> str:
        masked = self.decoded is not None
        return f"Found(label={self.label!r}, score={self.score:.3g}, xyxy={self.xyxy}, {masked=})"

    @property
    def label(self) -> str:
        """What the answer calls it; empty where it names nothing."""
        return self.detection.label

    @property
    def box(self) -> Box:
        """Corners as shares of the image's sides, `<loc>` / 1024."""
        return self.detection.box

    @property
    def xyxy(self) -> tuple[int, int, int, int]:
        """Corners x0, y0, x1, y1 in pixels; the last two lie outside. May be empty."""
        y0, x0, y1, x1 = self.box.pixels(self.width, self.height)
        return x0, y0, x1, y1

    @property
    def soft_mask(self) -> NDArray[np.float32] | None:
        """float32 [height, width] in 0..1; None where there is no mask. Made anew on each call."""
        if self.decoded is None:
            return None
        return paste_mask(self.decoded, self.box, self.width, self.height)

    @property
    def mask(self) -> NDArray[np.bool_] | None:
        """bool [height, width]; None where there is no mask. Made anew on each call."""
        soft = self.soft_mask
        return None if soft is None else inside(soft)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ObjectResult:
    """Objects with boxes, and masks where they were asked for. Iterates over the objects."""

    prompt: str
    text: str
    objects: tuple[Detection, ...]
    score: float
    truncated: bool  # cut by the token limit; what parsed is in `objects`
    width: int
    height: int
    notes: tuple[str, ...] = ()  # what a user should know, such as why there are no masks
    image: Image.Image | None = None

    def __iter__(self) -> Iterator[Detection]:
        return iter(self.objects)

    def __len__(self) -> int:
        return len(self.objects)

    def __getitem__(self, place: int) -> Detection:
        return self.objects[place]

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        objects = ", ".join(map(repr, self.objects))
        cut = ", truncated=True" if self.truncated else ""
        return (
            f"ObjectResult(prompt={self.prompt!r}, score={self.score:.3g}{cut}, "
            f"width={self.width}, height={self.height}, objects=[{objects}])"
        )

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON: boxes x0, y0, x1, y1, masks as COCO's compressed RLE."""
        return convert.to_json(self)

    def to_coco(
        self, *, image_id: int = 1, categories: Mapping[str, int] | None = None, first_id: int = 1
    ) -> list[dict[str, Any]]:
        """COCO annotations, `categories` giving the id of each label."""
        return convert.to_coco(self, image_id=image_id, categories=categories, first_id=first_id)

    def to_supervision(self) -> supervision.Detections:
        """`supervision.Detections`; MissingExtraError where that package is not installed."""
        return convert.to_supervision(self)

    def to_numpy(self) -> NDArray[np.void]:
        """Array [objects] of label, score, xyxy in pixels, and box y0, x0, y1, x1 as shares."""
        return convert.to_numpy(self)

    def draw(self, image: ImageInput | None = None) -> Image.Image:
        """The image with boxes, labels and masks over it; `image` where none was kept."""
        return notebook.overlay(self, image)

    def _repr_html_(self) -> str | None:
        return notebook.objects_html(self)
