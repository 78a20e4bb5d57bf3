"""How much a scheme changes the output of one layer, and which scheme a layer can have.

Measured on some rows of the weight, with the statistics of the layer's input: the error of the
rounded weight, and that of the rounded input.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from paligemma_edge.quantize.graphs.derived_weights import Float, matrix_rows
from paligemma_edge.quantize.graphs.linear import Linear
from paligemma_edge.quantize.recipes.recipe import Assignment, Recipe, Scheme
from paligemma_edge.quantize.rounding.rounding import round_rows
from paligemma_edge.quantize.rounding.statistics import PEAK_BLOCK, Moments
from paligemma_edge.runtime.system.linux import usable_cores

_ROWS = 128  # of each layer


@dataclass(frozen=True)
class SchemeChoice:
    """The scheme of one layer, and the error of its output with each scheme that it may have.

    Errors are NaN where they were not measured.
    """

    layer: str
    scheme: str
    errors: Mapping[str, float]  # relative, by scheme, from the recipe's own to the safest

    @property
    def error(self) -> float:
        """The relative error with the scheme that was chosen."""
        return self.errors[self.scheme]

    def safer(self) -> SchemeChoice | None:
        """The same layer with the next safer scheme, None where there is none."""
        names = list(self.errors)
        place = names.index(self.scheme) + 1
        return SchemeChoice(self.layer, names[place], self.errors) if place < len(names) else None


SchemeChoices: TypeAlias = Mapping[str, SchemeChoice]  # by layer


def first_schemes(layers: Mapping[str, Linear], recipe: Recipe) -> SchemeChoices:
    """The recipe's own scheme for every layer that it names; nothing is measured."""
    entries = {name: recipe.assignment(name) for name in layers}
    return {
        name: SchemeChoice(
            name, entry.scheme, dict.fromkeys((entry.scheme, *entry.safer), math.nan)
        )
        for name, entry in entries.items()
        if entry is not None
    }


def choose_schemes(
    layers: Mapping[str, Linear], recipe: Recipe, moments: Mapping[str, Moments]
) -> SchemeChoices:
    """A scheme for every layer that the recipe names, by the error of each scheme."""
    entries = {name: recipe.assignment(name) for name in layers}
    assigned = {name: entry for name, entry in entries.items() if entry is not None}
    with ThreadPoolExecutor(usable_cores()) as pool:
        chosen = pool.map(
            lambda item: _choose(layers[item[0]], recipe, item[1], moments.get(item[0])),
            assigned.items(),
        )
        return dict(zip(assigned, chosen, strict=True))


def _choose(
    layer: Linear, recipe: Recipe, entry: Assignment, moments: Moments | None
) -> SchemeChoice:
    rows = _some_rows(layer)
    names = (entry.scheme, *entry.safer)
    errors = {name: output_error(rows, recipe.schemes[name], moments) for name in names}
    fits = (name for name in names if errors[name] <= entry.most_error)
    return SchemeChoice(layer.name, next(fits, names[-1]), errors)


def output_error(rows: Float, scheme: Scheme, moments: Moments | None) -> float:
    """The length of the error of `x @ rows.T`, relative to that of the product itself."""
    if scheme.kind == "float":
        return 0.0
    rounded = round_rows(rows, scheme.grid, scheme.method, moments).values()
    signal = max(_power(rows, moments), 1e-30)
    noise = _power(rows - rounded, moments) + _input_noise(rows, scheme, moments)
    return float(np.sqrt(noise / signal))


def _some_rows(layer: Linear) -> Float:
    """Rows from four places of the weight."""
    count = layer.out_features
    if getattr(layer.tensor, "whole", False):
        return matrix_rows(layer.tensor, 0, count, layer.columns_first)[:: max(1, count // _ROWS)]
    part = min(count, _ROWS // 4)
    starts = np.linspace(0, count - part, 4).astype(int)
    pieces = [matrix_rows(layer.tensor, s, s + part, layer.columns_first) for s in starts]
    return np.concatenate(pieces)


def _power(rows: Float, moments: Moments | None) -> float:
    """The mean square of `x @ rows.T`, summed over the outputs."""
    if moments is None:
        return float(np.square(rows).sum())
    if not moments.second:
        return float(np.square(rows).sum(axis=0) @ moments.squares)
    total, start = 0.0, 0
    for second in moments.second:
        part = rows[:, start : start + len(second)]
        total += float(np.einsum("ri,ri->", part @ second, part))
        start += len(second)
    return max(total, 0.0)


def _input_noise(rows: Float, scheme: Scheme, moments: Moments | None) -> float:
    """Rounding to steps of 1/127 of a peak is off by a twelfth of a step, squared, in the mean."""
    if moments is None:
        return 0.0
    width = rows.shape[1]
    if scheme.kind == "integer":
        steps = 127 if scheme.inputs == 8 else 127 * 254
        variance = np.full(width, moments.peak / steps**2 / 12, np.float32)
    else:
        peaks = _over_blocks(moments.peaks, max(1, scheme.block // PEAK_BLOCK))
        variance = np.repeat(peaks, PEAK_BLOCK)[:width] / np.float32(127**2 * 12)
    return float(np.square(rows).sum(axis=0) @ variance)


def _over_blocks(peaks: Float, together: int) -> Float:
    starts = range(0, len(peaks), together)
    largest = np.maximum.reduceat(peaks, starts)
    return np.repeat(largest, together)[: len(peaks)]
