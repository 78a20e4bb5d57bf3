"""The typed calls score what the original scores on the sample model's held-out questions."""

from __future__ import annotations

import pytest

from paligemma_edge import PaliGemma
from samples.shapes.evaluate import CHECKPOINT, evaluate
from samples.shapes.runtime_predictor import make_predictor
from samples.shapes.transformers_predictor import load_predictor


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_the_typed_calls_score_what_the_original_scores(shapes_model: PaliGemma) -> None:
    """Box IoU, mask IoU and exact answers, by scoring code that is not the runtime's."""
    original = evaluate(load_predictor(CHECKPOINT), count=24)
    typed = evaluate(make_predictor(shapes_model), count=24)
    assert set(original) >= {"caption", "answer", "detect", "segment"}
    assert typed == original
