"""What the typed calls return: words, objects or a choice, each with its confidence.

Everywhere `confidence` is exp(`log_prob`), in 0..1, and the same number in each format. For words
and for objects as a whole it is the geometric mean of the probabilities that the model gave to
their tokens, before any grammar or temperature; for a choice it is its probability within the set.
Knows answers and pixels. Knows nothing of a model.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from paligemma_edge.runtime.images.load import ImageInput, load_image
from paligemma_edge.runtime.results import formats, notebook
from paligemma_edge.runtime.results.confidence import confidence_of, finite
from paligemma_edge.runtime.results.detection import Detection
from paligemma_edge.runtime.results.generation import FinishReason
from paligemma_edge.runtime.validation import check_share

if TYPE_CHECKING:
    import supervision


class _Result:
    """What all results can do once they are a dict of plain values."""

    def to_dict(self) -> dict[str, Any]:
        raise NotImplementedError

    def to_json(self) -> str:
        """`to_dict` as one line of JSON, in ASCII, without NaN or infinity.

        Returns:
            Text that any JSON reader takes.
        """
        return json.dumps(self.to_dict(), allow_nan=False)


@dataclass(frozen=True, kw_only=True)
class TextResult(_Result):
    """Words: a caption, an answer, what is written in an image. `str()` gives the text.

    Args:
        prompt: what was asked, as it was typed.
        text: the answer.
        log_prob: mean log-probability of the answer's tokens.
        finish_reason: "stop", or "length" where the token limit cut the answer.
        image: what the prompt was about, for a notebook; None where it was not kept.

    Example:
        >>> result = model.caption("street.jpg")
        >>> print(result, result.confidence)
    """

    prompt: str
    text: str
    log_prob: float
    finish_reason: FinishReason
    image: Image.Image | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        return self.text

    @property
    def confidence(self) -> float:
        """exp(log_prob), 0..1: the geometric mean of the tokens' probabilities."""
        return confidence_of(self.log_prob)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values.

        Returns:
            `prompt`, `text`, `confidence`, `log_prob` and `finish_reason`.
        """
        return {
            "prompt": self.prompt,
            "text": self.text,
            "confidence": self.confidence,
            "log_prob": finite(self.log_prob),
            "finish_reason": self.finish_reason,
        }

    def to_rows(self) -> list[dict[str, Any]]:
        """One row, for `pandas.DataFrame`: the values of `to_dict`."""
        return [self.to_dict()]

    def _repr_html_(self) -> str | None:
        return notebook.html(self.image, self.text)


@dataclass(frozen=True, kw_only=True)
class ChoiceResult(_Result):
    """One of a closed set of answers, with the probability that the model gave to each.

    Args:
        prompt: what was asked, as it was typed.
        text: the most likely choice.
        log_probs: of each choice, in the order given: the sum over its tokens, its end included.
        image: what the prompt was about, for a notebook; None where it was not kept.

    Example:
        >>> result = model.classify("street.jpg", "is it raining?", ["yes", "no"])
        >>> print(result.text, result.confidence, result.probabilities)
    """

    prompt: str
    text: str
    log_probs: Mapping[str, float]
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
    def confidence(self) -> float:
        """Probability of the chosen answer within the set, 0..1."""
        return confidence_of(self.log_prob)

    @property
    def log_prob(self) -> float:
        """Logarithm of `confidence`; finite where that rounds to zero."""
        relative = self._relative
        return relative[self.text] - math.log(sum(map(math.exp, relative.values())))

    @property
    def _relative(self) -> dict[str, float]:
        """Log-probabilities less the largest: their exponentials do not all vanish."""
        peak = max(self.log_probs.values())
        return {choice: value - peak for choice, value in self.log_probs.items()}

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values.

        Returns:
            `prompt`, `text`, `confidence`, `log_prob`, and of each choice `probabilities` and
            `log_probs`.
        """
        return {
            **self._row,
            "probabilities": self.probabilities,
            "log_probs": {choice: finite(value) for choice, value in self.log_probs.items()},
        }

    def to_rows(self) -> list[dict[str, Any]]:
        """One row, for `pandas.DataFrame`: `prompt`, `text`, `confidence` and `log_prob`."""
        return [self._row]

    @property
    def _row(self) -> dict[str, Any]:
        return {
            "prompt": self.prompt,
            "text": self.text,
            "confidence": self.confidence,
            "log_prob": finite(self.log_prob),
        }

    def _repr_html_(self) -> str | None:
        shares = (f"{choice} {share:.1%}" for choice, share in self.probabilities.items())
        return notebook.html(self.image, ", ".join(shares))


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ObjectResult(_Result):
    """Objects with boxes, and masks where they were requested. Iterates over the objects.

    Args:
        prompt: what was asked, as it was typed.
        text: the model's answer as it was generated, `<loc>` and `<seg>` tokens included.
        objects: the detections, in the order of the answer.
        classes: labels that `Detection.class_id` counts: those that the prompt asks for, unless
            others were given.
        log_prob: mean log-probability of the tokens of the whole answer.
        finish_reason: "stop", or "length" where the token limit cut the answer: what parsed is in
            `objects`.
        width: of the image, in pixels.
        height: of the image, in pixels.
        notes: what a user should know, such as why there are no masks.
        image: what the prompt was about, for `draw` and a notebook; None where it was not kept.

    Example:
        >>> result = model.detect("street.jpg", ["car", "person"])
        >>> for detection in result.filter(min_confidence=0.5):
        ...     print(detection.label, detection.confidence, detection.xyxy)
        >>> result.draw().save("street-objects.png")
    """

    prompt: str
    text: str
    objects: tuple[Detection, ...]
    classes: tuple[str, ...]
    log_prob: float
    finish_reason: FinishReason
    width: int
    height: int
    notes: tuple[str, ...] = ()
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
        return (
            f"ObjectResult(prompt={self.prompt!r}, confidence={self.confidence:.3g}, "
            f"finish_reason={self.finish_reason!r}, width={self.width}, height={self.height}, "
            f"objects=[{objects}])"
        )

    @property
    def confidence(self) -> float:
        """exp(log_prob), 0..1, of the whole answer; each detection has its own."""
        return confidence_of(self.log_prob)

    def filter(self, *, min_confidence: float) -> ObjectResult:
        """The same result with those objects alone that the model is sure enough of.

        Args:
            min_confidence: the least `Detection.confidence` to keep, 0..1.

        Returns:
            A new result; its text and its own confidence are still those of the whole answer.

        Raises:
            OptionError: `min_confidence` is not a number from 0 to 1.

        Example:
            >>> len(model.detect("street.jpg", "car").filter(min_confidence=0.5))
        """
        least = check_share("min_confidence", min_confidence)
        kept = tuple(one for one in self.objects if one.confidence >= least)
        return dataclasses.replace(self, objects=kept)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values, without NaN or infinity.

        Returns:
            The fields by name. Each of `objects` has `label`, `class_id`, `confidence`, `log_prob`,
            `xyxy` (pixels), `xyxy_normalized` (shares of the sides, 0..1) and, with a mask, `mask`:
            COCO's compressed RLE, as pycocotools reads it. `notes` only if there are any.
        """
        fields = {
            "prompt": self.prompt,
            "text": self.text,
            "confidence": self.confidence,
            "log_prob": finite(self.log_prob),
            "finish_reason": self.finish_reason,
            "width": self.width,
            "height": self.height,
            "classes": list(self.classes),
            "objects": [formats.to_dict(detection) for detection in self.objects],
        }
        return fields | ({"notes": list(self.notes)} if self.notes else {})

    def to_rows(self) -> list[dict[str, Any]]:
        """A row for each object, for `pandas.DataFrame`; none where there are no objects.

        Returns:
            `prompt`, `label`, `class_id`, `confidence`, `log_prob`, and `x0`, `y0`, `x1`, `y1` in
            pixels.

        Example:
            >>> pandas.DataFrame(model.detect("street.jpg", "car").to_rows())
        """
        return [{"prompt": self.prompt, **formats.to_row(one)} for one in self.objects]

    def to_coco(
        self, *, image_id: int = 1, categories: Mapping[str, int] | None = None, first_id: int = 1
    ) -> list[dict[str, Any]]:
        """COCO annotations of the objects; a box without pixels is left out.

        Args:
            image_id: COCO's id of the image.
            categories: COCO's category id of each label. By default `classes` are 1, 2, 3...;
                other labels have larger ids, the same in the results of all images.
            first_id: the id of the first annotation, at least 1.

        Returns:
            Annotations with `id`, `image_id`, `category_id`, `bbox` (x, y, width, height in
            pixels), `area`, `iscrowd`, `score` (COCO's word for the confidence) and, with a mask,
            `segmentation` (RLE).

        Raises:
            OptionError: `first_id` is below 1, or `categories` lacks a label of the answer.

        Source: https://cocodataset.org/#format-data
        """
        if categories is None:
            names = (*self.classes, *(one.label for one in self.objects))
            categories = {name: formats.class_number(name, self.classes) + 1 for name in names}
        return formats.to_coco(
            self.objects, image_id=image_id, categories=categories, first_id=first_id
        )

    def to_supervision(self) -> supervision.Detections:
        """All objects as `supervision.Detections`, in order.

        Returns:
            `xyxy` float64 [objects, 4] in pixels, as `Detections.from_vlm` has them: not rounded,
            and corners that the answer has in the wrong order are exchanged;
            `mask` bool [objects, height, width] or None, `confidence` float32 [objects], `class_id`
            int [objects], and `data["class_name"]`, the labels. Labels that are not among `classes`
            have larger ids, the same in the results of all images.

        Raises:
            MissingExtraError: the package supervision is not installed.
        """
        return formats.to_supervision(self.objects, self.width, self.height, self.classes)

    def to_numpy(self) -> NDArray[np.void]:
        """All objects as a structured array [objects].

        Returns:
            Fields `label` (text), `class_id` (int32), `confidence` (float32), `xyxy` (int32 [4] in
            pixels) and `xyxy_normalized` (float32 [4], shares of the sides, 0..1).
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
        names = (f"{one.label} {one.confidence:.0%}".strip() for one in self.objects)
        text = ", ".join(names) or self.text.strip() or "nothing found"
        cut = ["the answer was cut by the token limit"] if self.finish_reason == "length" else []
        return "\n".join([text, *cut, *self.notes])
