"""Scores answers against the truth: words are right or wrong, boxes and masks overlap.

Knows what a folder's `prompts.json` gives as the truth. Knows nothing of variants.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from paligemma_edge.quantize.fidelity.answers import EvalAnswer
from paligemma_edge.quantize.fidelity.overlap import EvalObject, box_iou, mask_iou, mean_overlap
from paligemma_edge.quantize.fidelity.questions import Question, read_masks
from paligemma_edge.runtime.bundle.fidelity import TaskScore

_SEGMENT = "segment"


def score(question: Question, answer: EvalAnswer) -> float | None:
    """1 or 0 for words, mean IoU for objects, each 0..1; None where no truth is known.

    Of the task "segment" the masks are compared, else the boxes. None too where the truth is
    masks and the folder or the model has none.
    """
    if question.objects is None:
        return None if question.text is None else float(answer.text == question.text)
    if question.task != _SEGMENT:
        return mean_overlap(_true_objects(question, None), answer.objects(), box_iou)
    if question.masks is None or answer.masks is None:
        return None
    values = read_masks(question.masks, (answer.width, answer.height))
    return mean_overlap(_true_objects(question, values), answer.objects(), mask_iou)


def score_tasks(
    questions: Sequence[Question], reference: Sequence[EvalAnswer], variant: Sequence[EvalAnswer]
) -> dict[str, TaskScore]:
    """Mean scores of both by task, over the questions whose truth is known."""
    scores: dict[str, list[tuple[float, float]]] = {}
    for question, one, two in zip(questions, reference, variant, strict=True):
        pair = (score(question, one), score(question, two))
        if pair[0] is not None and pair[1] is not None:
            scores.setdefault(question.task, []).append((pair[0], pair[1]))
    return {task: _mean(pairs) for task, pairs in scores.items()}


def _mean(pairs: Sequence[tuple[float, float]]) -> TaskScore:
    reference, variant = (float(np.mean(side)) for side in zip(*pairs, strict=True))
    return TaskScore(questions=len(pairs), reference=reference, variant=variant)


def _true_objects(question: Question, values: NDArray[np.uint8] | None) -> list[EvalObject]:
    assert question.objects is not None
    return [
        EvalObject(t.label, t.box, None if values is None or t.mask is None else values == t.mask)
        for t in question.objects
    ]
