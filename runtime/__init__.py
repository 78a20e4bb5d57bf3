"""Answers from a bundle. Needs numpy, onnxruntime, sentencepiece and Pillow, nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from paligemma_edge.runtime.errors import PaliGemmaError

if TYPE_CHECKING:
    from paligemma_edge.runtime.generation.sampling import TopSampling
    from paligemma_edge.runtime.grammar.choices import Choices
    from paligemma_edge.runtime.grammar.regex import Regex
    from paligemma_edge.runtime.model import PaliGemma
    from paligemma_edge.runtime.results.detection import Detection
    from paligemma_edge.runtime.results.generation import Generation
    from paligemma_edge.runtime.results.result import ChoiceResult, ObjectResult, TextResult

__all__ = [
    "ChoiceResult",
    "Choices",
    "Detection",
    "Generation",
    "ObjectResult",
    "PaliGemma",
    "PaliGemmaError",
    "Regex",
    "TextResult",
    "TopSampling",
]

_HOME = {
    "ChoiceResult": "results.result",
    "Choices": "grammar.choices",
    "Detection": "results.detection",
    "Generation": "results.generation",
    "ObjectResult": "results.result",
    "PaliGemma": "model",
    "Regex": "grammar.regex",
    "TextResult": "results.result",
    "TopSampling": "generation.sampling",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a module attribute may be anything
    """Load a public name on first use, so that the import itself stays quick."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
