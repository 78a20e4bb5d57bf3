"""PaliGemma on a device: images and a prompt in, words, boxes and masks out.

    from paligemma_edge import PaliGemma

    with PaliGemma("mix.bundle") as model:
        for detection in model.detect("street.jpg", ["car", "person"]):
            print(detection.label, detection.confidence, detection.xyxy)

These names are the public ones; whatever else lies in the package may change with any release. A
name is imported when it is first used, so that this import itself is quick. `__version__` is the
version of the installed package.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing's own, without the time that its import takes
if TYPE_CHECKING:
    from typing import Any

    from paligemma_edge.runtime.batch_calls import BatchCalls
    from paligemma_edge.runtime.encoded_image import EncodedImage
    from paligemma_edge.runtime.errors import (
        BundleError,
        CheckpointError,
        DeviceError,
        ImageError,
        MissingExtraError,
        NonFiniteLogitsError,
        OptionError,
        OutputError,
        PaliGemmaError,
        PromptError,
        TokenizerError,
    )
    from paligemma_edge.runtime.generation.request_list import Images
    from paligemma_edge.runtime.generation.sampling import Sampling, TopSampling
    from paligemma_edge.runtime.grammar.base import Grammar
    from paligemma_edge.runtime.grammar.choices import Choices
    from paligemma_edge.runtime.grammar.regex import Regex
    from paligemma_edge.runtime.grammar.task_grammar import Labels
    from paligemma_edge.runtime.images.load import ImageInput
    from paligemma_edge.runtime.loading.variants import DeviceName
    from paligemma_edge.runtime.model import PaliGemma
    from paligemma_edge.runtime.results.detection import Detection
    from paligemma_edge.runtime.results.generation import Generation
    from paligemma_edge.runtime.results.result import ChoiceResult, ObjectResult, TextResult
    from paligemma_edge.runtime.run.job import run_images
    from paligemma_edge.runtime.run.options import RunOptions

    __version__: str

__all__ = [
    "BatchCalls",
    "BundleError",
    "CheckpointError",
    "ChoiceResult",
    "Choices",
    "Detection",
    "DeviceError",
    "DeviceName",
    "EncodedImage",
    "Generation",
    "Grammar",
    "ImageError",
    "ImageInput",
    "Images",
    "Labels",
    "MissingExtraError",
    "NonFiniteLogitsError",
    "ObjectResult",
    "OptionError",
    "OutputError",
    "PaliGemma",
    "PaliGemmaError",
    "PromptError",
    "Regex",
    "RunOptions",
    "Sampling",
    "TextResult",
    "TokenizerError",
    "TopSampling",
    "__version__",
    "run_images",
]

_HOME = {
    "BatchCalls": "batch_calls",
    "ChoiceResult": "results.result",
    "Choices": "grammar.choices",
    "Detection": "results.detection",
    "DeviceName": "loading.variants",
    "EncodedImage": "encoded_image",
    "Generation": "results.generation",
    "Grammar": "grammar.base",
    "ImageInput": "images.load",
    "Images": "generation.request_list",
    "Labels": "grammar.task_grammar",
    "ObjectResult": "results.result",
    "PaliGemma": "model",
    "Regex": "grammar.regex",
    "RunOptions": "run.options",
    "Sampling": "generation.sampling",
    "TextResult": "results.result",
    "TopSampling": "generation.sampling",
    "run_images": "run.job",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a module attribute may be anything
    """Import a public name when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "__version__":
        from importlib.metadata import version

        return version("paligemma-edge")
    import importlib

    module = importlib.import_module(f"{__name__}.runtime.{_HOME.get(name, 'errors')}")
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)
