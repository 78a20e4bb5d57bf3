"""A recipe's passes over the graphs of a model, in their order.

    transform  fold gains, rotate, and after calibration smooth: the function stays the same
    choose     a scheme for each layer, by its error (`sensitivity`)
    round      schemes in the place of products; the best logits refined; half precision

The graphs that come in are left as they are, and weights are read when the result is written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir

from paligemma_edge.quantize.graphs.linear import HEAD, Linear, linears, untie_head
from paligemma_edge.quantize.graphs.prefill import PREFIX, has_windows, prefill_of, whole_prompt
from paligemma_edge.quantize.graphs.stored_weights import check_weights
from paligemma_edge.quantize.recipes.recipe import Recipe, Scheme
from paligemma_edge.quantize.rounding.rounding import round_rows
from paligemma_edge.quantize.rounding.statistics import Moments
from paligemma_edge.quantize.schemes.blockwise import to_blockwise
from paligemma_edge.quantize.schemes.integer import to_integer
from paligemma_edge.quantize.schemes.refine_logits import HeadInput, refine_head
from paligemma_edge.quantize.transforms.fold import float_of, fold_gains
from paligemma_edge.quantize.transforms.rotate import rotate_decoder
from paligemma_edge.quantize.transforms.smooth import smooth
from paligemma_edge.quantize.variant.sensitivity import SchemeChoices
from paligemma_edge.runtime import contract

Graphs = Mapping[str, ir.Model]
_NOT_ROTATED = (
    "the decoder's stream is not rotated, for the model normalizes what its layers add; "
    "the values of its heads are"
)


@dataclass(frozen=True)
class TransformedGraphs:
    """Float graphs that are ready to be rounded, and what the inputs of their layers are like."""

    graphs: Graphs
    head_input: HeadInput
    moments: Mapping[str, Moments]
    notes: tuple[str, ...] = ()  # transforms that this model does not allow

    def layers(self) -> dict[str, Linear]:
        """The linear layers of all graphs, by name."""
        return {layer.name: layer for model in self.graphs.values() for layer in linears(model)}


def transform(graphs: Graphs, recipe: Recipe) -> TransformedGraphs:
    """Copies of the graphs with gains folded and the decoder rotated.

    A prefill graph is left out: it is made anew from the decoder. From here on reading a weight
    raises OptionError where it holds NaN or Inf.
    """
    copies = {name: graphs[name].clone() for name in graphs if name != contract.PREFILL}
    check_weights(copies.values())
    decoder = copies[contract.DECODER]
    gain = _last_gain(decoder)
    if not recipe.fold:
        if recipe.assignment(HEAD) is not None:
            untie_head(decoder)
        return TransformedGraphs(copies, HeadInput(np.ones_like(gain), None), {})
    untie_head(decoder)
    for name in (contract.VISION_ENCODER, contract.DECODER):
        fold_gains(copies[name])
    rotation = rotate_decoder(decoder) if recipe.rotate else None
    notes = (_NOT_ROTATED,) if recipe.rotate and rotation is None else ()
    return TransformedGraphs(copies, HeadInput(gain, rotation), {}, notes)


def prepare(
    transformed: TransformedGraphs, recipe: Recipe, moments: Mapping[str, Moments]
) -> TransformedGraphs:
    """The graphs smoothed, with the prefill graph beside them if the recipe has one."""
    copies = {name: model.clone() for name, model in transformed.graphs.items()}
    head_input = transformed.head_input
    if recipe.smooth:
        moments = smooth(
            copies[contract.VISION_ENCODER], moments, recipe.smooth, norms=bool(moments)
        )
        decoder = copies[contract.DECODER]
        norms = bool(moments) and head_input.rotation is None
        moments = smooth(decoder, moments, recipe.smooth, norms=norms)
        head_input = HeadInput(head_input.gain / _last_gain(decoder), head_input.rotation)
    if recipe.prefill:
        copies[contract.PREFILL] = prefill_of(copies[contract.DECODER])
        same = {n.replace("decoder.", PREFIX, 1): m for n, m in moments.items()}
        moments = {**moments, **same}
    return dataclasses.replace(transformed, graphs=copies, head_input=head_input, moments=moments)


def round_graphs(
    transformed: TransformedGraphs, recipe: Recipe, choices: SchemeChoices
) -> dict[str, ir.Model]:
    """Copies of the graphs with each layer by its scheme; what no choice names stays float.

    A decoder with windows gets its copy for prompts, if it has none by other products.
    """
    copies = {name: model.clone() for name, model in transformed.graphs.items()}
    for model in copies.values():
        for layer in linears(model):
            if layer.name in choices:
                scheme, read = recipe.schemes[choices[layer.name].scheme], layer.input
                logits = str(layer.node.outputs[0].name)
                _round(model, layer, scheme, transformed.moments.get(layer.name))
                if layer.name == HEAD and recipe.refine:
                    refine_head(model, read, logits, transformed.head_input, recipe.refine)
    if contract.PREFILL not in copies and has_windows(copies[contract.DECODER]):
        copies[contract.PREFILL] = whole_prompt(copies[contract.DECODER])
    return copies


def _round(model: ir.Model, layer: Linear, scheme: Scheme, moments: Moments | None) -> None:
    rounding = partial(round_rows, grid=scheme.grid, method=scheme.method, moments=moments)
    if scheme.kind == "blockwise":
        to_blockwise(model, layer, rounding, bits=scheme.bits, block=scheme.block)
    elif scheme.kind == "integer":
        to_integer(model, layer, rounding, inputs=scheme.inputs)


def _last_gain(decoder: ir.Model) -> np.ndarray:
    norms = [node for node in decoder.graph if node.op_type == "RMSNormalization"]
    return float_of(norms[-1].inputs[1])
