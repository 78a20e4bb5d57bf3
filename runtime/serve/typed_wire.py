"""What the typed endpoints take, beside an image: the fields of each task.

The same fields stand in JSON, in the query of an image that is sent raw, and in a form. Knows
names, types and bounds. Fields that are not here are refused: a name that is spelled wrong would
else be of no effect without a word.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from msgspec import Meta, Struct

from paligemma_edge.runtime.errors import OptionError
from paligemma_edge.runtime.grammar.choices import MAX_CHOICES
from paligemma_edge.runtime.grammar.task_grammar import Labels

MaskForm: TypeAlias = Literal["rle", "png", "none"]
AnswerFormat: TypeAlias = Literal["json", "coco", "inference"]

MAX_PROMPTS = 16
_MAX_LABELS = 1000
_INT32, _INT64 = 2**31 - 1, 2**63 - 1

Language: TypeAlias = Annotated[
    str, Meta(description="of the answer, such as en or de", examples=["en"])
]
Prompt: TypeAlias = Annotated[
    str, Meta(description="a whole prompt, asked as it is typed", examples=["caption en"])
]
Share: TypeAlias = Annotated[float, Meta(ge=0, le=1)]


class TypedOptions(Struct, kw_only=True, forbid_unknown_fields=True):
    """What every task takes."""

    model: Annotated[
        str | None, Meta(description="the base model or one of its adapters; default: the base")
    ] = None
    stream: Annotated[
        bool, Meta(description="answer as server-sent events, as text and objects come")
    ] = False
    timeout: (
        Annotated[
            float,
            Meta(gt=0, le=86_400, description="seconds; the server's own limit holds beside it"),
        ]
        | None
    ) = None
    supersede: (
        Annotated[
            str,
            Meta(
                min_length=1,
                max_length=200,
                description="a name such as cam1: a waiting request of this name is dropped",
            ),
        ]
        | None
    ) = None


class GeneratedOptions(TypedOptions, kw_only=True):
    """What tasks take whose answers are generated."""

    max_new_tokens: (
        Annotated[int, Meta(ge=1, le=_INT32, description="tokens of the answer at most")] | None
    ) = None


class CaptionOptions(GeneratedOptions, kw_only=True):
    """Say what the image shows."""

    language: Language = "en"


class AskOptions(GeneratedOptions, kw_only=True):
    """Answer a question."""

    question: Annotated[str, Meta(examples=["how many cats are there?"])]
    language: Language = "en"


class OcrOptions(GeneratedOptions, kw_only=True):
    """Read what is written in the image."""


class ShownObjects(GeneratedOptions, kw_only=True):
    """How objects are found, and how they are given."""

    constrained: Annotated[
        bool, Meta(description="hold the answer to the form of objects, so that it always parses")
    ] = True
    label_set: Annotated[
        Labels, Meta(description="any: labels are the model's own; asked: those asked for alone")
    ] = "any"
    classes: (
        Annotated[
            list[str],
            Meta(
                min_length=1,
                max_length=_MAX_LABELS,
                description="names that class_id counts; default: the labels asked for",
            ),
        ]
        | None
    ) = None
    min_confidence: Annotated[
        Share, Meta(description="leaves out objects that the model is less sure of")
    ] = 0.0
    masks: Annotated[
        MaskForm, Meta(description="rle: COCO's runs; png: a soft mask of the box; none: no masks")
    ] = "rle"
    format: Annotated[
        AnswerFormat,
        Meta(description="coco: COCO's JSON; inference: that of Roboflow's inference"),
    ] = "json"

    def __post_init__(self) -> None:
        if self.format != "json" and self.stream:
            raise OptionError(f"format={self.format} is one document, wanted it without stream")
        if self.format != "json" and self.masks == "png":
            raise OptionError(f"format={self.format} holds runs, wanted masks=rle or masks=none")


class FindOptions(ShownObjects, kw_only=True):
    """Find objects of these labels."""

    labels: Annotated[
        list[str], Meta(min_length=1, max_length=_MAX_LABELS, examples=[["cat", "dog"]])
    ]


class DetectOptions(FindOptions, kw_only=True):
    """Find objects: boxes with labels."""


class SegmentOptions(FindOptions, kw_only=True):
    """Find objects: boxes with labels and masks."""


class ClassifyOptions(TypedOptions, kw_only=True):
    """Choose the most likely one of a closed set of answers."""

    prompt: Prompt
    choices: Annotated[
        list[str], Meta(min_length=1, max_length=MAX_CHOICES, examples=[["yes", "no"]])
    ]


class GenerateOptions(ShownObjects, kw_only=True):
    """Answer any prompt, or several about one image."""

    prompt: Prompt | None = None
    prompts: (
        Annotated[
            list[Prompt],
            Meta(min_length=1, max_length=MAX_PROMPTS, description="in place of prompt"),
        ]
        | None
    ) = None
    temperature: Annotated[
        float, Meta(ge=0, le=2, description="0: the most likely token each time")
    ] = 0.0
    top_p: Share = 1.0
    top_k: Annotated[int, Meta(ge=0, le=_INT32, description="0: no limit")] = 0
    seed: (
        Annotated[int, Meta(ge=0, le=_INT64, description="of sampling; default: a random one")]
        | None
    ) = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.prompt is None) == (self.prompts is None):
            raise OptionError("wanted either prompt or prompts")
        if self.prompts is not None and self.format != "json":
            raise OptionError(f"format={self.format} is one document, wanted one prompt")


class ImageReference(Struct, forbid_unknown_fields=True):
    """An image that was sent before, by the id that its answer gave."""

    id: str
