"""Questions as calibration runs them: pixels, ids, and the lossless variant's answers."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from paligemma_edge.quantize.calibration.calibrate import CalibrationSample
from paligemma_edge.quantize.fidelity.answers import EvalRequest
from paligemma_edge.quantize.fidelity.questions import Question
from paligemma_edge.quantize.graphs.derived_weights import Float
from paligemma_edge.runtime.images.load import load_image
from paligemma_edge.runtime.images.preprocess import pixel_values
from paligemma_edge.runtime.loading.loaded_model import load_model
from paligemma_edge.runtime.manifest import Manifest
from paligemma_edge.runtime.progress import Progress
from paligemma_edge.runtime.text.tokenizer import PromptEncoder


@dataclass(frozen=True)
class Calibration:
    """Pixel values [3, R, R] of each image, and the samples that refer to them by number."""

    images: tuple[Float, ...]
    samples: tuple[CalibrationSample, ...]


def with_answers(
    bundle: Path,
    lossless: str,
    questions: Sequence[Question],
    max_new_tokens: int,
    progress: Progress,
) -> Calibration:
    """The questions with the lossless variant's answers; it is out of memory when this returns."""
    model = load_model(bundle, variant=lossless)
    answers = []
    for number, question in enumerate(questions):
        progress("answering", number, len(questions))
        request = EvalRequest.encode(model, question, max_new_tokens)
        answers.append(tuple(token for token, _ in request.answer()))
    calibration = without_answers(model.bundle.manifest, model.encoder, questions, answers)
    del model
    gc.collect()
    return calibration


def without_answers(
    manifest: Manifest,
    encoder: PromptEncoder,
    questions: Sequence[Question],
    answers: Sequence[tuple[int, ...]] = (),
) -> Calibration:
    """The questions with answers that are known already, or with none."""
    paths = list(dict.fromkeys(question.image for question in questions))
    images = tuple(pixel_values(load_image(path), manifest.image) for path in paths)
    known = answers or [()] * len(questions)
    return Calibration(
        images,
        tuple(
            CalibrationSample(
                paths.index(question.image), encoder.encode(question.prompt, 1), answer
            )
            for question, answer in zip(questions, known, strict=True)
        ),
    )
