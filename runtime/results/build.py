"""A generation as the result that its task promises.

Knows how an answer's text maps to words and objects. Knows nothing of how it was generated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from paligemma_edge.runtime.results.confidence import object_log_prob
from paligemma_edge.runtime.results.detection import Detection
from paligemma_edge.runtime.results.generation import Generation
from paligemma_edge.runtime.results.result import ObjectResult, TextResult
from paligemma_edge.runtime.text.parse_answer import ParsedAnswer, ParsedObject
from paligemma_edge.runtime.text.tasks import Task

# Codes int64 [masks, 16] → float32 [masks, 64, 64]; None where the bundle has no mask decoder.
DecodeMasks: TypeAlias = Callable[[NDArray[np.int64]], NDArray[np.float32]] | None

WITHOUT_MASKS = (
    "the bundle has no mask decoder, so boxes are given without masks; "
    "export it with --mask-decoder vae-oid.npz"
)

WITHOUT_CODES = "the model gave objects without masks: the boxes are its whole answer"
REPEATED = "the model named an object twice, with one label and one box; see docs/confidence.md"
IN_WORDS = "the model answered in words and found no objects; its words are the text of the answer"


def text_result(generation: Generation, image: Image.Image | None = None) -> TextResult:
    """The words of an answer."""
    return TextResult(
        prompt=generation.prompt,
        text=generation.text,
        log_prob=generation.log_prob,
        finish_reason=generation.finish_reason,
        image=image,
    )


def object_result(
    task: Task,
    generation: Generation,
    size: tuple[int, int],
    decode_masks: DecodeMasks,
    *,
    constrained: bool = False,
    image: Image.Image | None = None,
    classes: Sequence[str] | None = None,
) -> ObjectResult:
    """The objects of an answer, masks decoded; one that the token limit cut is left out.

    Args:
        task: what the prompt requests.
        generation: the answer.
        size: width and height of the image.
        decode_masks: the bundle's mask decoder.
        constrained: whether the task's grammar held the answer: what then begins with no object is
            words, and none is read from it.
        image: what the prompt was about.
        classes: what class ids count; by default the labels that the prompt asks for.
    """
    names = task.classes if classes is None else tuple(classes)
    in_words = constrained and generation.text != "" and 0 not in generation.box_log_probs
    count = 0 if in_words else _whole_objects(task, generation)
    parsed, log_probs = generation.answer.objects[:count], generation.object_log_probs[:count]
    objects = tuple(
        Detection(
            label=one.label,
            class_id=names.index(one.label) if one.label in names else -1,
            log_prob=object_log_prob(parts),
            xyxy_normalized=one.xyxy_normalized,
            width=size[0],
            height=size[1],
            decoded_mask=mask,
        )
        for one, parts, mask in zip(
            parsed, log_probs, decoded_masks(parsed, decode_masks), strict=True
        )
    )
    return ObjectResult(
        prompt=generation.prompt,
        text=generation.text,
        objects=objects,
        classes=names,
        log_prob=generation.log_prob,
        finish_reason=generation.finish_reason,
        width=size[0],
        height=size[1],
        notes=(IN_WORDS,) if in_words else _notes(task, parsed, decode_masks),
        image=image,
    )


def _notes(
    task: Task, parsed: Sequence[ParsedObject], decode_masks: DecodeMasks
) -> tuple[str, ...]:
    """What a user should know of the objects: why some have no masks, that one came twice."""
    repeated = len({(one.label, one.xyxy_normalized) for one in parsed}) < len(parsed)
    return _mask_notes(task, parsed, decode_masks) + (REPEATED,) * repeated


def _mask_notes(
    task: Task, parsed: Sequence[ParsedObject], decode_masks: DecodeMasks
) -> tuple[str, ...]:
    """Why objects have no masks, where some have none that should."""
    coded = [one.codes is not None for one in parsed]
    without_decoder = decode_masks is None and any(coded)
    without_codes = task.masks and not all(coded)
    return (WITHOUT_MASKS,) * without_decoder + (WITHOUT_CODES,) * without_codes


def _whole_objects(task: Task, generation: Generation) -> int:
    """How many objects of an answer are complete."""
    answer = generation.answer
    cut = generation.finish_reason == "length" and _last_is_cut(task, answer)
    return len(answer.objects) - cut


def _last_is_cut(task: Task, answer: ParsedAnswer) -> bool:
    """Whether the last object may be incomplete: no separator follows it."""
    if not answer.objects or answer.text[answer.spans[-1][1] :].lstrip().startswith(";"):
        return False
    last = answer.objects[-1]
    named = task.labels is not None and last.label in task.labels
    return not named or (task.masks and last.codes is None)


def decoded_masks(
    objects: Sequence[ParsedObject], decode_masks: DecodeMasks
) -> list[NDArray[np.float32] | None]:
    """Each object's mask float32 [64, 64], None where it has no codes or none can be decoded."""
    codes = [one.codes for one in objects if one.codes is not None]
    if not codes or decode_masks is None:
        return [None] * len(objects)
    decoded = iter(decode_masks(np.asarray(codes, np.int64)))
    return [None if one.codes is None else next(decoded) for one in objects]
