"""From weights to codes and scales: the nearest code, the best scale, or GPTQ.

All three are symmetric: a value is `code * scale`, with one scale for each block of a row. Knows
matrices. Knows nothing of graphs, nor of how codes are packed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from paligemma_edge.quantize.rounding.statistics import Moments

if TYPE_CHECKING:  # help on the commands reads recipes, and has no onnx_ir
    from paligemma_edge.quantize.graphs.derived_weights import Float

Method: TypeAlias = Literal["nearest", "search", "gptq"]

_FACTORS = np.linspace(0.75, 1.1, 15, dtype=np.float32)  # of the scale that clips nothing
_COLUMNS = 64  # that GPTQ rounds before it carries their error to all the others
_DAMPING = 0.01  # of the mean of the diagonal, as in the paper
_SMALLEST = np.finfo(np.float32).tiny  # normal number; below it float32 and bfloat16 lose digits


@dataclass(frozen=True)
class Grid:
    """Codes of `bits` bits; `block` inputs share a scale, or the whole row where it is None."""

    bits: Literal[4, 8]
    block: int | None

    @property
    def lowest(self) -> int:
        """The smallest code; the largest one is one less than its opposite."""
        return -(1 << (self.bits - 1))


@dataclass(frozen=True)
class Rounded:
    """Codes int8 [rows, in], and scales float32 [rows, blocks]."""

    codes: NDArray[np.int8]
    scales: Float
    block: int

    def values(self) -> Float:
        """What the codes stand for, float32 [rows, in]."""
        scales = np.repeat(self.scales, self.block, axis=1)[:, : self.codes.shape[1]]
        return self.codes * scales


def round_rows(rows: Float, grid: Grid, method: Method, moments: Moments | None) -> Rounded:
    """Round rows [rows, in] of a weight; without moments of its input none is worth more."""
    block = grid.block or rows.shape[1]
    blocks = _blocks(rows, block)
    scales = _widest(blocks, grid)
    if method != "nearest":
        scales = _best(blocks, scales, grid, _importance(rows.shape[1], block, moments))
    if method == "gptq" and moments is not None and moments.second:
        return Rounded(_gptq(rows, scales, grid, block, moments), scales, block)
    codes = _nearest(blocks, scales[..., None], grid)
    return Rounded(codes.reshape(len(rows), -1)[:, : rows.shape[1]], scales, block)


def _blocks(rows: Float, block: int) -> Float:
    """[rows, in] → [rows, blocks, block], the last one filled with zeros."""
    missing = -rows.shape[1] % block
    padded = np.pad(rows, ((0, 0), (0, missing))) if missing else rows
    return padded.reshape(len(rows), -1, block)


def _widest(blocks: Float, grid: Grid) -> Float:
    """Scales [rows, blocks] with which the largest value of each block takes the lowest code.

    There is one code more on that side; so a scale may be negative. A block of zeros has scale 1.
    """
    low, high = blocks.min(axis=2), blocks.max(axis=2)
    largest = np.where(-low > high, low, high)
    scales: Float = _normal((largest / grid.lowest).astype(np.float32))
    scales[largest == 0] = 1
    return scales


def _normal(scales: Float) -> Float:
    """The scales, none of them subnormal: such a scale is off by whole percents, so codes would
    be clipped, and kernels may take it for zero.
    """
    return np.copysign(np.maximum(np.abs(scales), _SMALLEST), scales)


def _nearest(values: Float, scales: Float | np.float32, grid: Grid) -> NDArray[np.int8]:
    codes: Float = np.rint(values / scales)
    np.clip(codes, grid.lowest, -grid.lowest - 1, out=codes)
    return codes.astype(np.int8)


def _importance(width: int, block: int, moments: Moments | None) -> Float:
    """How much an error of each input counts: its mean square. [blocks, block]"""
    squares = np.ones(width, np.float32) if moments is None else moments.squares
    # An input that was zero in calibration may not be elsewhere.
    everywhere = np.float32(1e-3 * float(squares.mean()) + 1e-12)
    counted: Float = _blocks((squares + everywhere)[None], block)[0]
    return counted


def _best(blocks: Float, widest: Float, grid: Grid, importance: Float) -> Float:
    """The scales with the least weighted square error, of some below and above the widest."""
    best, chosen = np.full(widest.shape, np.inf, np.float32), widest.copy()
    steps = blocks / widest[..., None]  # squares of tiny weights would be zero, of huge ones Inf
    for factor in _FACTORS:
        errors = steps - _nearest(steps, factor, grid) * factor
        np.square(errors, out=errors)
        loss = np.einsum("rbk,bk->rb", errors, importance)
        better = loss < best
        best[better], chosen[better] = loss[better], widest[better] * factor
    return _normal(chosen)


def _gptq(rows: Float, scales: Float, grid: Grid, block: int, moments: Moments) -> NDArray[np.int8]:
    """Round input by input; what each one loses, the inputs that are still to come make up for.

    (GPTQ, https://arxiv.org/abs/2210.17323, with the most active inputs first.)
    """
    columns = np.ascontiguousarray(rows.T)  # [in, rows]
    codes = np.empty(columns.shape, np.int8)
    start = 0
    for second in moments.second:
        inputs = slice(start, start + len(second))
        order = np.argsort(-np.diag(second), kind="stable")
        places = np.arange(inputs.start, inputs.stop)[order]
        spread = np.ascontiguousarray(scales.T)[places // block]
        codes[places] = _round_in_order(
            columns[places], spread, _carry(second[np.ix_(order, order)]), grid
        )
        start = inputs.stop
    return np.ascontiguousarray(codes.T)


def _carry(second: Float) -> Float:
    """The upper Cholesky factor of the inverse: how an input's error moves to the later ones."""
    damped = second.astype(np.float64)
    damped[np.diag_indices_from(damped)] += _DAMPING * np.diag(damped).mean() + 1e-9
    return np.linalg.cholesky(np.linalg.inv(damped)).T.astype(np.float32)


def _round_in_order(columns: Float, scales: Float, carry: Float, grid: Grid) -> NDArray[np.int8]:
    """`columns` [in, rows] are used up; `scales` [in, rows]."""
    codes = np.empty(columns.shape, np.int8)
    for start in range(0, len(columns), _COLUMNS):
        group = slice(start, min(start + _COLUMNS, len(columns)))
        losses = np.empty_like(columns[group])
        for place in range(group.start, group.stop):
            value, scale = columns[place], scales[place]
            codes[place] = _nearest(value, scale, grid)
            loss = (value - codes[place] * scale) / carry[place, place]
            rest = slice(place + 1, group.stop)
            columns[rest] -= carry[place, rest, None] * loss
            losses[place - start] = loss
        columns[group.stop :] -= carry[group, group.stop :].T @ losses
    return codes
