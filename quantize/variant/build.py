"""From cured graphs and chosen schemes to the graphs of a variant, in its device's precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

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
from paligemma_edge.quantize.variant.passes import TransformedGraphs, round_graphs
from paligemma_edge.quantize.variant.sensitivity import SchemeChoice, choose_schemes, first_schemes
from paligemma_edge.runtime import contract
from paligemma_edge.runtime.errors import OptionError
from paligemma_edge.runtime.manifest import ModelConfig

Progress = Callable[[str, int, int], None]
_HALF = {"float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}


@dataclass(frozen=True)
class VariantGraphs:
    """The graphs of a variant, and what is worth telling of them."""

    graphs: Mapping[str, ir.Model]
    choices: Mapping[str, SchemeChoice]
    notes: tuple[str, ...]
    changes: Changes  # by the cures, of the layers that have any


def scheme_choices(
    cured: TransformedGraphs, recipe: Recipe, *, measure: bool
) -> dict[str, SchemeChoice]:
    """A scheme for each layer: by its error, or the recipe's first one where none is measured."""
    layers = cured.layers()
    return (
        choose_schemes(layers, recipe, cured.moments) if measure else first_schemes(layers, recipe)
    )


def build_graphs(
    cured: TransformedGraphs,
    recipe: Recipe,
    choices: Mapping[str, SchemeChoice],
    *,
    config: ModelConfig,
    image_id: int,
    calibration: Calibration | None,
    tell: Progress,
) -> VariantGraphs:
    """Round the graphs; for CUDA make them half precision, and see that CUDA can run them.

    There the decoder chooses tokens by itself, of those below `image_id`. OptionError names what
    CUDA cannot run, or what no float16 could hold.
    """
    graphs = round_graphs(cured, recipe, choices)
    notes = cured.notes + _fallbacks(choices)
    if recipe.compute in _HALF:
        kept = _kept_float(cured, recipe, config, calibration, tell)
        notes += range_notes(kept)
        _halve(graphs, recipe, kept)
    if recipe.device == "cuda":
        graphs |= _choosing(graphs, config.vocab_size, image_id)
        _require_kernels(graphs, recipe)
    return VariantGraphs(graphs, choices, notes, layer_changes(cured))


def layer_changes(cured: TransformedGraphs) -> Changes:
    """Those of a prefill graph are the decoder's, and nothing comes later to the head."""
    layers = {k: v for k, v in cured.layers().items() if not k.startswith(PREFIX) and k != HEAD}
    found = {name: changes_of(layer.tensor) for name, layer in layers.items()}
    return {name: changes for name, changes in found.items() if changes}


def _fallbacks(choices: Mapping[str, SchemeChoice]) -> tuple[str, ...]:
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
    cured: TransformedGraphs,
    recipe: Recipe,
    config: ModelConfig,
    calibration: Calibration | None,
    tell: Progress,
) -> dict[str, float]:
    """Layers whose values float16 cannot hold, with the largest value seen; bfloat16 holds all."""
    if recipe.compute != "float16" or calibration is None:
        return {}
    ranges = scan_ranges(
        cured.graphs,
        config,
        calibration.images,
        calibration.asked,
        progress=lambda stage, done, of: tell(f"scanning ranges of {stage}", done, of),
    )
    return overflowing(ranges)


def _halve(graphs: Mapping[str, ir.Model], recipe: Recipe, kept: Mapping[str, float]) -> None:
    for name, model in graphs.items():
        if name != contract.MASK_DECODER:
            to_half(model, _HALF[recipe.compute], keep_float=kept)


def _choosing(graphs: Mapping[str, ir.Model], vocab: int, image_id: int) -> dict[str, ir.Model]:
    """Let what makes logits choose from them; the graphs that look at those that stay there."""
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
