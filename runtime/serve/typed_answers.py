"""Answers of the typed endpoints: a result with what it took, and objects with their masks.

What each holds is what `to_dict` of a result gives. Knows results and their form on the wire.
Knows nothing of requests.
"""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from msgspec import UNSET, Struct, UnsetType
from msgspec.structs import asdict, astuple

from paligemma_edge.runtime.results import formats
from paligemma_edge.runtime.results.detection import Detection
from paligemma_edge.runtime.results.generation import FinishReason
from paligemma_edge.runtime.results.result import ChoiceResult, ObjectResult, TextResult
from paligemma_edge.runtime.scheduling.events import Finished
from paligemma_edge.runtime.serve.chat_answer import usage_of
from paligemma_edge.runtime.serve.chat_wire import ImageInfo, Usage
from paligemma_edge.runtime.serve.coco_format import CocoDocument, coco_document
from paligemma_edge.runtime.serve.inference_format import InferenceDocument, inference_document
from paligemma_edge.runtime.serve.mask_png import mask_png
from paligemma_edge.runtime.serve.typed_wire import AnswerFormat, MaskForm
from paligemma_edge.runtime.timing import Stage

TaskName: TypeAlias = Literal["caption", "ask", "ocr", "detect", "segment", "classify", "generate"]
Result: TypeAlias = TextResult | ObjectResult | ChoiceResult


class Timings(Struct):
    """Seconds that an answer waited, and that each of its stages took, in the order of `Stage`."""

    queue: float = 0.0
    preprocess: float = 0.0
    vision: float = 0.0
    projector: float = 0.0
    prefill: float = 0.0
    steps: float = 0.0


class ObjectMask(Struct, omit_defaults=True):
    """A mask: COCO's runs, `size` being height and width, or a PNG of the box in base64."""

    size: tuple[int, int] | UnsetType = UNSET
    counts: str | UnsetType = UNSET
    png: str | UnsetType = UNSET
    box: tuple[int, int, int, int] | UnsetType = UNSET


class DetectedObject(Struct):
    """An object; corners are x0, y0, x1, y1, in pixels and as shares of the sides."""

    label: str
    class_id: int
    confidence: float
    log_prob: float
    xyxy: tuple[int, int, int, int]
    xyxy_normalized: tuple[float, float, float, float]
    mask: ObjectMask | UnsetType = UNSET


class AboutImage(Struct, kw_only=True):
    """Which request, model and image an answer is of."""

    id: str
    model: str
    image: ImageInfo


class Answered(Struct, kw_only=True):
    """What every answer has; `index` is the prompt's place, where answers are streamed."""

    task: TaskName
    prompt: str
    text: str
    confidence: float
    log_prob: float
    timings: Timings
    usage: Usage
    notes: list[str]
    index: int | UnsetType = UNSET


class WholeAnswer(Answered, kw_only=True):
    """An answer that is not one of several."""

    id: str
    model: str
    image: ImageInfo


class TextAnswer(WholeAnswer, kw_only=True):
    """Words."""

    finish_reason: FinishReason


class ObjectsAnswer(WholeAnswer, kw_only=True):
    """Objects; `classes` is what class ids count."""

    finish_reason: FinishReason
    classes: list[str]
    objects: list[DetectedObject]


class ChoiceAnswer(WholeAnswer, kw_only=True):
    """One of a closed set, and how likely each of it was."""

    probabilities: dict[str, float]
    log_probs: dict[str, float]


class PromptAnswer(Answered, kw_only=True):
    """The answer to one of several prompts: words, or objects where it begins as theirs do."""

    finish_reason: FinishReason
    classes: list[str] | UnsetType = UNSET
    objects: list[DetectedObject] | UnsetType = UNSET
    seed: int | UnsetType = UNSET


class GeneratedAnswer(PromptAnswer, kw_only=True):
    """The answer to a prompt; `seed` is what it was sampled with."""

    id: str
    model: str
    image: ImageInfo


class PromptAnswers(AboutImage, kw_only=True):
    """The answers to several prompts about one image, in their order."""

    results: list[PromptAnswer]
    notes: list[str]


class StreamedToken(Struct):
    """A piece of text; a character is never cut in two."""

    index: int
    text: str


class StreamedObject(Struct):
    """An object that is complete; `number` is its place among those that are given."""

    index: int
    number: int
    object: DetectedObject


TypedAnswer: TypeAlias = TextAnswer | ObjectsAnswer | ChoiceAnswer | GeneratedAnswer
ANSWERS: Mapping[TaskName, type[TypedAnswer]] = {
    "caption": TextAnswer,
    "ask": TextAnswer,
    "ocr": TextAnswer,
    "detect": ObjectsAnswer,
    "segment": ObjectsAnswer,
    "classify": ChoiceAnswer,
    "generate": GeneratedAnswer,
}


@dataclass(frozen=True, kw_only=True)
class AnswerStyle:
    """What a client wants an answer to look like.

    Args:
        task: of the endpoint.
        about: the request, the model and the image.
        preprocess_seconds: that reading the image took.
        min_confidence: of an object that is given.
        masks: how masks are given.
        format: what kind of document the answer is.
        seed: that tokens were drawn with, None where they were not.
    """

    task: TaskName
    about: AboutImage
    preprocess_seconds: float = 0.0
    min_confidence: float = 0.0
    masks: MaskForm = "rle"
    format: AnswerFormat = "json"
    seed: int | None = None

    def document(self, finished: Finished) -> TypedAnswer | CocoDocument | InferenceDocument:
        """The whole answer, in the format that is wanted."""
        result = finished.result
        if isinstance(result, ObjectResult) and self.format != "json":
            shown = self._shown(result)
            if self.format == "coco":
                return coco_document(shown, self.about.image.id)
            return inference_document(shown, sum(astuple(self._timings(finished))))
        return self.answer(finished)

    def answer(self, finished: Finished, index: int | UnsetType = UNSET) -> TypedAnswer:
        """The whole answer; `index` is the prompt's place, where answers are streamed."""
        return ANSWERS[self.task](**asdict(self.about), **self._fields(finished), index=index)

    def prompt_answer(self, finished: Finished) -> PromptAnswer:
        """The answer to one of several prompts."""
        return PromptAnswer(**self._fields(finished))

    def shows(self, detection: Detection) -> bool:
        """Whether an object is given."""
        return detection.confidence >= self.min_confidence

    def detected(self, detection: Detection) -> DetectedObject:
        """An object with its mask in the form that is wanted."""
        png = mask_png(detection) if self.masks == "png" else None
        fields = formats.to_dict(self._with_runs(detection))
        runs = fields.pop("mask", None)
        mask: ObjectMask | UnsetType = UNSET if runs is None else ObjectMask(**runs)
        if png is not None:
            mask = ObjectMask(png=base64.b64encode(png).decode(), box=detection.xyxy)
        return DetectedObject(**fields, mask=mask)

    def _fields(self, finished: Finished) -> dict[str, Any]:
        """What all kinds of answers have, and what those of this result have beside it."""
        fields = self._result_fields(finished.result)
        if self.seed is not None:
            fields["seed"] = self.seed
        return {
            **fields,
            "task": self.task,
            "timings": self._timings(finished),
            "usage": usage_of(finished),
            "notes": [*fields.get("notes", ()), *finished.notes],
        }

    def _result_fields(self, result: Result) -> dict[str, Any]:
        if not isinstance(result, ObjectResult):
            return result.to_dict()
        shown = self._shown(result)
        fields = dataclasses.replace(shown, objects=()).to_dict()
        del fields["width"], fields["height"]  # the image has them
        return {**fields, "objects": [self.detected(one) for one in shown]}

    def _shown(self, result: ObjectResult) -> ObjectResult:
        """The objects that are given, without masks where those are not."""
        kept = tuple(one for one in result if self.shows(one))
        if self.masks == "none":
            kept = tuple(map(self._with_runs, kept))
        return dataclasses.replace(result, objects=kept)

    def _with_runs(self, detection: Detection) -> Detection:
        """A detection whose mask is given as runs; without one where it is given otherwise."""
        if self.masks == "rle":
            return detection
        return dataclasses.replace(detection, decoded_mask=None)

    def _timings(self, finished: Finished) -> Timings:
        seconds = (finished.seconds.get(stage, 0.0) for stage in get_args(Stage))
        timings = Timings(finished.queue_seconds, *seconds)
        timings.preprocess += self.preprocess_seconds
        return timings
