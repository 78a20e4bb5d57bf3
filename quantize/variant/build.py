"""From a lossless model to the graphs of a variant, in its device's precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import onnx_ir as ir

from paligemma_edge.quantize.calibration.ranges import overflowing, range_notes, scan_ranges
from paligemma_edge.quantize.calibration.samples import Calibration
from paligemma_edge.quantize.graphs.linear import HEAD
from paligemma_edge.quantize.graphs.prefill import PREFIX
from paligemma_edge.quantize.recipes.recipe import Recipe
from paligemma_edge.quantize.schemes.argmax_head import add_argmax_head, logit_graphs
from paligemma_edge.quantize.schemes.cuda_check import missing_kernels
from paligemma_edge.quantize.schemes.half import to_half
from paligemma_edge.quantize.transforms.changes import Changes, changes_of
from paligemma_edge.quantize.variant.passes import Graphs, TransformedGraphs, round_graphs
from paligemma_edge.quantize.variant.prepare import transform_and_calibrate, without_calibration
from paligemma_edge.quantize.variant.sensitivity import (
    SchemeChoices,
    choose_schemes,
    first_schemes,
)
from paligemma_edge.runtime import contract
from paligemma_edge.runtime.errors import OptionError
from paligemma_edge.runtime.manifest import ModelConfig
from paligemma_edge.runtime.progress import Progress

_HALF = {"float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}


@dataclass(frozen=True)
class ModelSource:
    """A lossless model that variants are built from."""

    graphs: Graphs
    config: ModelConfig
    image_id: int  # of the first token that is never part of an answer


Search: TypeAlias = Callable[[Recipe, TransformedGraphs, SchemeChoices], SchemeChoices]


@dataclass(frozen=True)
class VariantGraphs:
    """The graphs of a variant, and what to report about them."""

    graphs: Mapping[str, ir.Model]
    choices: SchemeChoices
    notes: tuple[str, ...]
    changes: Changes  # by the transforms, of the layers that have any


def build_variant(
    source: ModelSource,
    recipe: Recipe,
    calibration: Calibration | None,
    progress: Progress,
    search: Search | None = None,
) -> VariantGraphs:
    """The graphs of a variant: transform, calibrate, choose schemes, round and convert.

    Without `calibration` every weight is rounded to its nearest code. `search` may choose safer
    schemes than those that the measured errors require. Weights are read when the graphs are
    written. OptionError where the recipe does not fit the model, or a weight holds NaN or Inf.
    """
    if calibration is None:
        recipe = without_calibration(recipe)
    transformed = transform_and_calibrate(
        source.graphs, source.config, recipe, calibration, progress
    )
    progress(f"choosing schemes of {recipe.name}", 0, 1)
    measure = calibration is not None or search is not None
    choices = scheme_choices(transformed, recipe, measure=measure)
    if search is not None:
        choices = search(recipe, transformed, choices)
    return round_and_convert(
        transformed, recipe, choices, source=source, calibration=calibration, progress=progress
    )


def scheme_choices(
    transformed: TransformedGraphs, recipe: Recipe, *, measure: bool
) -> SchemeChoices:
    """A scheme for each layer: by its error, or the recipe's first one where none is measured."""
    layers = transformed.layers()
    if not measure:
        return first_schemes(layers, recipe)
    return choose_schemes(layers, recipe, transformed.moments)


def round_and_convert(
    transformed: TransformedGraphs,
    recipe: Recipe,
    choices: SchemeChoices,
    *,
    source: ModelSource,
    calibration: Calibration | None,
    progress: Progress,
) -> VariantGraphs:
    """Round the graphs; for CUDA convert them to half precision, and check that CUDA can run them.

    There the decoder chooses tokens by itself, of those below `image_id`. OptionError names what
    CUDA cannot run, or what no float16 could hold.
    """
    graphs = round_graphs(transformed, recipe, choices)
    notes = transformed.notes + _fallbacks(choices)
    if recipe.compute in _HALF:
        kept = _kept_float(transformed, recipe, source.config, calibration, progress)
        notes += range_notes(kept)
        _halve(graphs, recipe, kept)
    if recipe.device == "cuda":
        graphs |= _choosing(graphs, source.config.vocab_size, source.image_id)
        _require_kernels(graphs, recipe)
    return VariantGraphs(graphs, choices, notes, layer_changes(transformed))


def layer_changes(transformed: TransformedGraphs) -> Changes:
    """By layer; those of a prefill graph are the decoder's, and nothing is added to the head."""
    return {
        name: changes
        for name, layer in transformed.layers().items()
        if not name.startswith(PREFIX) and name != HEAD and (changes := changes_of(layer.tensor))
    }


def _fallbacks(choices: SchemeChoices) -> tuple[str, ...]:
    """Which layers did not get the scheme that the recipe has first for them."""
    moved: dict[str, list[str]] = {}
    for name, choice in choices.items():
        if choice.scheme != next(iter(choice.errors)):
            moved.setdefault(choice.scheme, []).append(name)
    return tuple(
        f"{len(names)} of {len(choices)} layers fell back to {scheme}: {', '.join(names)}"
        for scheme, names in moved.items()
    )


def _kept_float(
    transformed: TransformedGraphs,
    recipe: Recipe,
    config: ModelConfig,
    calibration: Calibration | None,
    progress: Progress,
) -> dict[str, float]:
    """Layers whose values float16 cannot hold, with the largest value seen; bfloat16 holds all."""
    if recipe.compute != "float16" or calibration is None:
        return {}
    ranges = scan_ranges(
        transformed.graphs,
        config,
        calibration.images,
        calibration.samples,
        progress=lambda stage, done, of: progress(f"scanning ranges of {stage}", done, of),
    )
    return overflowing(ranges)


def _halve(graphs: Mapping[str, ir.Model], recipe: Recipe, kept: Mapping[str, float]) -> None:
    for name, model in graphs.items():
        if name != contract.MASK_DECODER:
            to_half(model, _HALF[recipe.compute], keep_float=kept)


def _choosing(graphs: Mapping[str, ir.Model], vocab: int, image_id: int) -> dict[str, ir.Model]:
    """Let graphs with logits choose a token; the graphs that read logits on the device."""
    for model in graphs.values():
        if any(value.name == contract.LOGITS for value in model.graph.outputs):
            add_argmax_head(model, image_id)
    return logit_graphs(vocab, image_id)


def _require_kernels(graphs: Mapping[str, ir.Model], recipe: Recipe) -> None:
    for name, model in graphs.items():
        if name == contract.MASK_DECODER:
            continue
        for problem in missing_kernels(name, model, _HALF[recipe.compute]):
            raise OptionError(f"recipe {recipe.name} makes a graph that CUDA cannot run: {problem}")
