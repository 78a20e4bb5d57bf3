"""What the typed calls return: words, objects or a choice, each with its score.

The score of words and of objects is the mean log-probability that the model gave to their tokens,
before any grammar or temperature; that of a choice is the logarithm of its share. `exp(score)`
is in 0..1. Knows answers and pixels. Knows nothing of a model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from paligemma_edge.runtime.images.load import ImageInput, load_image
from paligemma_edge.runtime.results import formats, notebook
from paligemma_edge.runtime.results.detection import Detection
from paligemma_edge.runtime.text.tasks import Task

if TYPE_CHECKING:
    import supervision


@dataclass(frozen=True, kw_only=True)
class TextResult:
    """Words: a caption, an answer, what is written in an image. `str()` gives the text.

    Example:
        >>> result = model.caption("street.jpg")
        >>> print(result, math.exp(result.score))
    """

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
            "score": formats.finite(self.score),
            "truncated": self.truncated,
        }

    def _repr_html_(self) -> str | None:
        return notebook.html(self.image, self.text)


@dataclass(frozen=True, kw_only=True)
class ChoiceResult:
    """One of a closed set of answers, with the probability that the model gave to each.

    `log_probs` are sums over an answer's tokens, its end included; `probabilities` are those,
    normalised over the set.

    Example:
        >>> result = model.classify("street.jpg", "is it raining?", ["yes", "no"])
        >>> print(result.text, result.probabilities[result.text])
    """

    prompt: str
    text: str
    log_probs: Mapping[str, float]  # in the order in which the choices were given
    image: Image.Image | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        return self.text

    @property
    def probabilities(self) -> dict[str, float]:
        """Probability of each choice within the set, 0..1; they sum to 1."""
        weights = {choice: math.exp(value) for choice, value in self._relative.items()}
        total = sum(weights.values())
        return {choice: weight / total for choice, weight in weights.items()}

    @property
    def score(self) -> float:
        """Logarithm of the chosen answer's probability; finite where that rounds to zero."""
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
            "score": formats.finite(self.score),
            "log_probs": {choice: formats.finite(v) for choice, v in self.log_probs.items()},
            "probabilities": self.probabilities,
        }

    def _repr_html_(self) -> str | None:
        shares = (f"{choice} {share:.1%}" for choice, share in self.probabilities.items())
        return notebook.html(self.image, ", ".join(shares))


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ObjectResult:
    """Objects with boxes, and masks where they were requested. Iterates over the objects.

    Example:
        >>> result = model.detect("street.jpg", ["car", "person"])
        >>> for detection in result:
        ...     print(detection.label, detection.xyxy)
        >>> result.draw().save("street-objects.png")
    """

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

    def __getitem__(self, index: int) -> Detection:
        return self.objects[index]

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
        """The fields as plain JSON, without NaN or infinity.

        Returns:
            The fields by name. Each of `objects` has `label`, `score`, `box` (x0, y0, x1, y1 in
            pixels), `box_normalised` (the same as shares of the sides, 0..1) and, with a mask,
            `mask`: COCO's compressed RLE, as pycocotools reads it. `notes` only if there are any.
        """
        fields = {
            "prompt": self.prompt,
            "text": self.text,
            "score": formats.finite(self.score),
            "truncated": self.truncated,
            "width": self.width,
            "height": self.height,
            "objects": [formats.to_json(detection) for detection in self.objects],
        }
        return fields | ({"notes": list(self.notes)} if self.notes else {})

    def to_coco(
        self, *, image_id: int = 1, categories: Mapping[str, int] | None = None, first_id: int = 1
    ) -> list[dict[str, Any]]:
        """COCO annotations of the objects; a box without pixels is left out.

        Args:
            image_id: COCO's id of the image.
            categories: COCO's category id of each label. By default the labels that the prompt
                asks for are 1, 2, 3..., followed by other labels of the answer.
            first_id: the id of the first annotation, at least 1.

        Returns:
            Annotations with `id`, `image_id`, `category_id`, `bbox` (x, y, width, height in
            pixels), `area`, `iscrowd`, `score` (0..1) and, with a mask, `segmentation` (RLE).

        Raises:
            OptionError: `first_id` is below 1, or `categories` lacks a label of the answer.

        Source: https://cocodataset.org/#format-data
        """
        if categories is None:
            requested = Task.of(self.prompt).labels or ()
            categories = formats.number_labels((*requested, *(one.label for one in self.objects)))
        return formats.to_coco(
            self.objects, image_id=image_id, categories=categories, first_id=first_id
        )

    def to_supervision(self) -> supervision.Detections:
        """All objects as `supervision.Detections`, in order.

        Returns:
            `xyxy` float32 [objects, 4] in pixels, `mask` bool [objects, height, width] or None,
            `confidence` exp(score), `class_id` numbered from 0 as labels first appear, and
            `data["class_name"]`, the labels.

        Raises:
            MissingExtraError: the package supervision is not installed.
        """
        return formats.to_supervision(self.objects, self.width, self.height)

    def to_numpy(self) -> NDArray[np.void]:
        """All objects as a structured array [objects].

        Returns:
            Fields `label` (text), `score` (float32), `xyxy` (int32 [4] in pixels) and `box`
            (float32 [4]: y0, x0, y1, x1 as shares of the sides, 0..1).
        """
        return formats.to_numpy(self.objects)

    def draw(self, image: ImageInput | None = None) -> Image.Image:
        """The image with boxes, labels and masks drawn over it.

        Args:
            image: the image that the answer is about, in any size; it may be left out where the
                answer kept it.

        Returns:
            A new RGB image of the size of `image`.

        Raises:
            OptionError: there is no image, or it has another shape than the answer's.
            ImageError: `image` cannot be read.
        """
        shown = self.image if image is None else load_image(image)
        return notebook.overlay(self.objects, shown, self.width, self.height)

    def _repr_html_(self) -> str | None:
        return notebook.detections_html(self.objects, self.image, self._caption)

    @property
    def _caption(self) -> str:
        """The objects, or the model's text where there are none; then what a user should know."""
        names = (f"{one.label} {math.exp(one.score):.0%}".strip() for one in self.objects)
        text = ", ".join(names) or self.text.strip() or "nothing found"
        cut = ["the answer was cut by the token limit"] if self.truncated else []
        return "\n".join([text, *cut, *self.notes])
