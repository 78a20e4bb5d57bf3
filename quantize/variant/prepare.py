"""A model's graphs made ready for a recipe: transformed, calibrated, smoothed."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable

from paligemma_edge.quantize.calibration.calibrate import calibrate
from paligemma_edge.quantize.calibration.samples import Calibration
from paligemma_edge.quantize.recipes.recipe import Recipe
from paligemma_edge.quantize.variant.passes import Graphs, TransformedGraphs, prepare, transform
from paligemma_edge.runtime.errors import OptionError
from paligemma_edge.runtime.manifest import ModelConfig
from paligemma_edge.runtime.progress import Progress


def require_distinct(names: Iterable[str]) -> None:
    """OptionError where two variants would have one name, as recipes of two folders may."""
    for name, count in Counter(names).items():
        if count > 1:
            raise OptionError(f"variant {name} is requested {count} times, wanted each once")


def require_layers(graphs: Graphs, recipe: Recipe) -> None:
    """OptionError where a recipe names layers that the graphs do not have."""
    transformed = prepare(transform(graphs, recipe), dataclasses.replace(recipe, smooth=0), {})
    recipe.require_names({name: layer.in_features for name, layer in transformed.layers().items()})


def transform_and_calibrate(
    graphs: Graphs,
    config: ModelConfig,
    recipe: Recipe,
    calibration: Calibration | None,
    progress: Progress,
) -> TransformedGraphs:
    """The graphs ready to be rounded, calibrated if there is something to calibrate with."""
    transformed = transform(graphs, recipe)
    moments = {}
    if calibration is not None and recipe.layers:
        second = any(scheme.rounding == "gptq" for scheme in recipe.schemes.values())
        moments = calibrate(
            transformed.graphs,
            config,
            calibration.images,
            calibration.samples,
            second=second,
            progress=lambda stage, done, of: progress(f"calibrating {stage}", done, of),
        )
    return prepare(transformed, recipe, moments)


def without_calibration(recipe: Recipe) -> Recipe:
    """The recipe with every weight rounded to its nearest code."""
    schemes = {
        name: dataclasses.replace(scheme, rounding="nearest")
        for name, scheme in recipe.schemes.items()
    }
    return dataclasses.replace(recipe, schemes=schemes)
