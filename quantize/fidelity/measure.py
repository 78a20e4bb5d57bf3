"""How near is a variant to the lossless one? Both answer the same questions, one after the other.

The lossless variant may take most of the memory, so the two are never open at once: what the
reference answered waits on disk.
"""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paligemma_edge.quantize.fidelity import figures
from paligemma_edge.quantize.fidelity.answers import EvalAnswer, EvalRequest
from paligemma_edge.quantize.fidelity.overlap import box_iou, mask_iou
from paligemma_edge.quantize.fidelity.questions import Question
from paligemma_edge.quantize.fidelity.truth import score_tasks
from paligemma_edge.runtime.bundle.bundle import Bundle
from paligemma_edge.runtime.bundle.fidelity import Fidelity, LayerError
from paligemma_edge.runtime.diagnostics.memory_use import measure_memory
from paligemma_edge.runtime.errors import OptionError
from paligemma_edge.runtime.loading.loaded_model import load_model
from paligemma_edge.runtime.loading.variants import choose_variant
from paligemma_edge.runtime.progress import Progress, no_progress
from paligemma_edge.runtime.validation import check_count

DEFAULT_MAX_NEW_TOKENS = 96  # three objects with masks


def measure_fidelity(
    bundle: str | os.PathLike[str],
    variant: str,
    reference: str,
    questions: Sequence[Question],
    *,
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
    recipe: str | None = None,
    layer_errors: Sequence[LayerError] = (),
    notes: Sequence[str] = (),
    progress: Progress = no_progress,
) -> Fidelity:
    """Ask both variants of a bundle every question and compare their answers.

    `recipe` defaults to the name that the variant has for it. Nothing is written. OptionError
    for an unknown variant or no question; DeviceError where a logit is NaN or Inf;
    ImageError, PromptError or BundleError say what cannot be read.
    """
    manifest = Bundle.open(bundle).manifest
    for name in (reference, variant):
        choose_variant(manifest, "auto", name)
    check_count("max_new_tokens", max_new_tokens)
    if not questions:
        raise OptionError("there is no question to compare the variants with, wanted at least one")
    comparison = _Comparison(bundle, questions, max_new_tokens, progress)
    compared = comparison.run(reference, variant)
    progress(f"measuring memory of {variant}", 0, 1)
    measured = manifest.variants[variant]
    return _report(
        compared,
        questions,
        variant=variant,
        reference=reference,
        recipe=measured.recipe if recipe is None else recipe,
        disk_bytes=sum(manifest.files[name].bytes for name in measured.files),
        memory=measure_memory(bundle, variant, questions[0].image, questions[0].prompt),
        layers=tuple(layer_errors),
        notes=tuple(notes),
    )


@dataclass(frozen=True, eq=False)
class _Reference:
    """The reference's answer, and where its logits are: float32 [tokens, vocab that may answer]."""

    answer: EvalAnswer
    logits: Path


@dataclass(frozen=True, eq=False)
class _Compared:
    """One question, answered by both. Arrays are [tokens of the reference's answer]."""

    reference: EvalAnswer
    variant: EvalAnswer
    forced: NDArray[np.bool_]  # whether the token after the reference's own is the reference's
    divergence: NDArray[np.float64]
    logit_error: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class _Comparison:
    """Two variants that answer the same questions, one after the other."""

    bundle: str | os.PathLike[str]
    questions: Sequence[Question]
    max_new_tokens: int
    progress: Progress

    def run(self, reference: str, variant: str) -> list[_Compared]:
        """Each model is released before the next one is opened or memory is measured."""
        with tempfile.TemporaryDirectory(prefix="paligemma-edge-") as spill:
            known = self._answer_reference(reference, Path(spill))
            gc.collect()
            compared = self._answer_variant(variant, known)
            gc.collect()
        return compared

    def _answer_reference(self, name: str, spill: Path) -> list[_Reference]:
        model, known = load_model(self.bundle, variant=name), []
        for number, question in enumerate(self.questions):
            self.progress(f"comparing answers: {name}", number, len(self.questions))
            request = EvalRequest.encode(model, question, self.max_new_tokens)
            steps = [(token, row.copy()) for token, row in request.answer()]
            path = spill / f"{number}.npy"
            np.save(path, np.stack([row for _, row in steps]))
            known.append(_Reference(request.decode([token for token, _ in steps]), path))
        return known

    def _answer_variant(self, name: str, known: Sequence[_Reference]) -> list[_Compared]:
        model, compared = load_model(self.bundle, variant=name), []
        for number, question in enumerate(self.questions):
            self.progress(f"comparing answers: {name}", number, len(self.questions))
            request = EvalRequest.encode(model, question, self.max_new_tokens)
            compared.append(_compare(request, known[number]))
        return compared


def _compare(request: EvalRequest, reference: _Reference) -> _Compared:
    expected, tokens = np.load(reference.logits, mmap_mode="r"), reference.answer.tokens
    chosen, divergences, errors = [], [], []
    for row, wanted in zip(request.forced(tokens), expected, strict=True):
        chosen.append(int(row.argmax()))
        divergences.append(figures.divergence(wanted, row))
        errors.append(figures.logit_error(wanted, row))
    # If it would choose the same tokens, its own answer is the same: no need to run it.
    same = tuple(chosen) == tokens
    free = tokens if same else tuple(token for token, _ in request.answer())
    return _Compared(
        reference.answer,
        request.decode(free),
        np.equal(chosen, tokens),
        np.array(divergences),
        np.array(errors),
    )


def _report(
    compared: Sequence[_Compared],
    questions: Sequence[Question],
    **known: Any,  # noqa: ANN401 - the report's fields that need no answer
) -> Fidelity:
    references, variants = [c.reference for c in compared], [c.variant for c in compared]
    pairs = list(zip(references, variants, strict=True))
    forced = np.concatenate([c.forced for c in compared])
    return Fidelity(
        questions=len(questions),
        tokens=len(forced),
        forced_agreement=float(forced.mean()),
        free_agreement=figures.free_agreement(pairs),
        same_answers=figures.same_answers(pairs),
        divergence=figures.spread([c.divergence for c in compared]),
        logit_error=figures.spread([c.logit_error for c in compared]),
        box_iou=figures.mean_iou(pairs, box_iou),
        mask_iou=figures.mean_iou(pairs, mask_iou, masked=True),
        tasks=score_tasks(questions, references, variants),
        **known,
    )
