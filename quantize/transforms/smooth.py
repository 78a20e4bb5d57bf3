"""Moves the unevenness of inputs into the weights, channel by channel. The function stays.

A channel that is `s` times too large is divided by that where it comes from, and the next
weight's column multiplied by it: from a norm's gain, from the rows of `up_proj` (its product with
the gate is linear in them), or from the rows of a vision block's values. What follows a GELU has
no such place. (SmoothQuant, https://arxiv.org/abs/2211.10438, equation 4.)
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from paligemma_edge.quantize.graphs.check_finite import compute_finite
from paligemma_edge.quantize.graphs.derived_weights import Float, row_chunks
from paligemma_edge.quantize.graphs.linear import Linear, initializer, linears
from paligemma_edge.quantize.rounding.statistics import Moments
from paligemma_edge.quantize.transforms.changes import DividedOutputs, ScaledInputs
from paligemma_edge.quantize.transforms.fold import NORMS, float_of, norm_readers, put_float

_Moments = Mapping[str, Moments]


def smooth(model: ir.Model, moments: _Moments, strength: float, *, norms: bool) -> _Moments:
    """Smooth a graph in place; return the statistics as they are afterwards.

    Layers without statistics take the size of the rows that feed them for that of their input.
    `norms` smooths norms too: not where the stream is rotated, which is even already.
    """
    layers = {layer.name: layer for layer in linears(model)}
    after = dict(moments)
    if norms:
        _smooth_norms(model, layers, after, strength)
    for name, layer in layers.items():
        if name.endswith(".down_proj"):
            _smooth_down(layers[name.replace(".down_proj", ".up_proj")], layer, after, strength)
        if name.endswith(".out_proj"):
            _smooth_out(layers[name.replace(".out_proj", ".qkv_proj")], layer, after, strength)
    return after


def _smooth_norms(
    model: ir.Model, layers: Mapping[str, Linear], after: dict[str, Moments], strength: float
) -> None:
    by_node = {id(layer.node): layer for layer in layers.values()}
    for norm in [node for node in model.graph if node.op_type in NORMS]:
        readers = norm_readers(norm, by_node)
        if readers and readers[0].name in after:
            seen = after[readers[0].name].largest
            scales = _scales(seen, np.max([_columns(r) for r in readers], axis=0), strength)
            for place in range(1, len(norm.inputs)):
                _divide(norm.inputs[place], scales)
            for reader in readers:
                _enlarge(reader, scales, after)


def _smooth_down(up: Linear, down: Linear, after: dict[str, Moments], strength: float) -> None:
    seen = after[down.name].largest if down.name in after else _rows(up)
    scales = _scales(seen, _columns(down), strength)
    up.change(DividedOutputs(scales))
    _enlarge(down, scales, after)


def _smooth_out(qkv: Linear, out: Linear, after: dict[str, Moments], strength: float) -> None:
    """Values are the last third of the rows of q, k and v."""
    first = qkv.out_features - out.in_features
    seen = after[out.name].largest if out.name in after else _rows(qkv)[first:]
    scales = _scales(seen, _columns(out), strength)
    divisors = np.concatenate([np.ones(first, np.float32), scales])
    qkv.change(DividedOutputs(divisors))
    if qkv.bias is not None:
        _divide(qkv.bias, divisors)
    _enlarge(out, scales, after)


def _divide(value: ir.Value | None, divisors: Float) -> None:
    stored = initializer(value)
    assert stored is not None
    put_float(stored, compute_finite(str(stored.name), lambda: float_of(stored) / divisors))


def _enlarge(layer: Linear, scales: Float, after: dict[str, Moments]) -> None:
    layer.change(ScaledInputs(scales))
    if layer.name in after:
        after[layer.name] = after[layer.name].scaled(np.reciprocal(scales))


def _scales(inputs: Float, columns: Float, strength: float) -> Float:
    """How much smaller each input channel is to be; the mean of their logarithms is 0."""
    used = (inputs > 0) & (columns > 0) & np.isfinite(inputs) & np.isfinite(columns)
    scales = np.ones_like(inputs)
    scales[used] = inputs[used] ** strength / columns[used] ** (1 - strength)
    if used.any():
        scales[used] /= np.exp(np.log(scales[used]).mean())
    return np.clip(scales, 1e-4, 1e4).astype(np.float32)


def _columns(layer: Linear) -> Float:
    """The largest magnitude of each column, [in]."""
    chunks = row_chunks(layer.tensor, layer.columns_first)
    largest: Float = np.max([np.abs(rows).max(axis=0) for _, rows in chunks], axis=0)
    return largest


def _rows(layer: Linear) -> Float:
    """The length of each row, [out]."""
    chunks = row_chunks(layer.tensor, layer.columns_first)
    with np.errstate(over="ignore"):  # `_scales` leaves out what is not finite
        return np.concatenate([np.linalg.norm(rows, axis=1) for _, rows in chunks])
