"""Rounding: what each method promises of every matrix, and what GPTQ gains on uneven inputs."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from paligemma_edge.quantize.graphs.derived_weights import Float
from paligemma_edge.quantize.rounding.rounding import Grid, Method, Rounded, round_rows
from paligemma_edge.quantize.rounding.statistics import Accumulator, Moments

Exact = NDArray[np.float64]
METHODS: tuple[Method, ...] = ("nearest", "search", "gptq")
SUBNORMAL = np.array([[5.273e-42]], np.float32)  # and so would be its scale: 29.4 of the least

_shapes = st.tuples(st.integers(1, 4), st.integers(1, 70))
_even = st.floats(-8, 8, width=32)


def _uneven(power: int) -> st.SearchStrategy[float]:
    """Zeros, and values from 2^-power to 2^power."""
    low, high = 2.0**-power, 2.0**power
    sized = st.floats(low, high, width=32) | st.floats(-high, -low, width=32)
    return st.just(0.0) | sized


def matrices(power: int) -> st.SearchStrategy[Float]:
    """Rows [rows, in] of all kinds, single values and zeros among them."""
    values = arrays(np.float32, _shapes, elements=_even)
    wild = arrays(np.float32, _shapes, elements=_uneven(power))
    return values | wild | arrays(np.float32, _shapes, elements=st.just(0.0))


grids = st.builds(Grid, st.sampled_from([4, 8]), st.sampled_from([None, 16, 32, 64]))


def moments_of(x: Float, *, second: bool = True) -> Moments:
    accumulator = Accumulator(x.shape[1], second=second)
    accumulator.add(x, 1.0)
    return accumulator.moments()


def plain(squares: Float, second: tuple[Float, ...] = ()) -> Moments:
    """Moments whose peaks are of no matter."""
    return Moments(np.sqrt(squares), squares, squares, 1.0, second)


def spread(rounded: Rounded) -> Exact:
    """The scale of each value, [rows, in]."""
    whole = np.repeat(rounded.scales.astype(np.float64), rounded.block, axis=1)
    return whole[:, : rounded.codes.shape[1]]


def weighted_error(rows: Float, rounded: Rounded, weights: NDArray[Any]) -> float:
    off = rows - rounded.codes * spread(rounded)
    return float((np.square(off) @ weights.astype(np.float64)).sum())


@given(matrices(100), grids)
@example(SUBNORMAL, Grid(8, None))
def test_nearest_is_off_by_at_most_half_a_step(rows: Float, grid: Grid) -> None:
    rounded = round_rows(rows, grid, "nearest", None)
    steps = rows.astype(np.float64) / spread(rounded) - rounded.codes
    clipped = rounded.codes == -grid.lowest - 1
    assert (np.abs(steps)[~clipped] <= 0.5 + 1e-4).all()
    assert (steps[clipped] <= 1 + 1e-4).all(), "the largest value of a block takes the lowest code"
    assert (steps[clipped] >= -0.5 - 1e-4).all()


@given(matrices(100), grids, st.sampled_from(METHODS))
@example(SUBNORMAL, Grid(8, None), "search")
@example(SUBNORMAL, Grid(8, None), "gptq")
def test_codes_stay_in_range_and_values_finite(rows: Float, grid: Grid, method: Method) -> None:
    x = np.random.default_rng(0).normal(size=(8, rows.shape[1])).astype(np.float32)
    rounded = round_rows(rows, grid, method, moments_of(x))
    assert rounded.codes.shape == rows.shape
    assert rounded.scales.shape == (len(rows), -(-rows.shape[1] // rounded.block))
    assert (rounded.codes.astype(int) >= grid.lowest).all()
    assert (rounded.codes.astype(int) <= -grid.lowest - 1).all()
    assert np.isfinite(rounded.scales).all()
    assert (np.abs(rounded.scales) >= np.finfo(np.float32).tiny).all(), "some are subnormal"
    assert np.isfinite(rounded.values()).all()


@given(matrices(40), grids, st.sampled_from(METHODS[:2]), st.integers(0, 69))
def test_a_block_of_zeros_stays_one(rows: Float, grid: Grid, method: Method, place: int) -> None:
    width = rows.shape[1]
    block = grid.block or width
    start = min(place, width - 1) // block * block
    rows[:, start : start + block] = 0
    values = round_rows(rows, grid, method, None).values()
    assert (values[:, start : start + block] == 0).all()


@given(matrices(100), grids, st.integers(0, 1000) | st.none())
@example(np.array([[3e-23, -1e-23]], np.float32), Grid(8, None), None)  # its squares are 0
@example(np.array([[3e30, -1e30]], np.float32), Grid(8, None), None)  # and these are Inf
@example(SUBNORMAL, Grid(8, None), None)
def test_search_is_never_worse_than_nearest(rows: Float, grid: Grid, seed: int | None) -> None:
    """In the error that counts: weighted by how large each input is in the mean square."""
    width = rows.shape[1]
    squares = np.ones(width, np.float32)
    if seed is not None:
        squares = np.asarray(np.random.default_rng(seed).exponential(size=width), np.float32) ** 3
    moments = None if seed is None else plain(squares)
    nearest, search = (round_rows(rows, grid, m, moments) for m in METHODS[:2])
    weights = squares + squares.mean() / 1000  # an input that was never seen may still come
    limit = weighted_error(rows, nearest, weights)
    rest = 1e-13 * float((np.square(rows.astype(np.float64)) @ weights.astype(np.float64)).sum())
    assert weighted_error(rows, search, weights) <= limit * (1 + 1e-5) + rest


@given(matrices(40), grids)
def test_gptq_of_inputs_that_have_nothing_in_common_is_search(rows: Float, grid: Grid) -> None:
    width = rows.shape[1]
    moments = plain(np.ones(width, np.float32), (np.eye(width, dtype=np.float32),))
    search, gptq = (round_rows(rows, grid, method, moments) for method in ("search", "gptq"))
    np.testing.assert_array_equal(gptq.scales, search.scales)
    np.testing.assert_array_equal(gptq.codes, search.codes)


@given(matrices(40), grids, st.sampled_from(METHODS[:2]))
def test_a_row_is_rounded_for_itself(rows: Float, grid: Grid, method: Method) -> None:
    """So cores may share the rows of a weight."""
    whole = round_rows(rows, grid, method, None)
    for number in range(len(rows)):
        alone = round_rows(rows[number : number + 1], grid, method, None)
        np.testing.assert_array_equal(alone.codes[0], whole.codes[number])
        np.testing.assert_array_equal(alone.scales[0], whole.scales[number])


def test_rounding_leaves_the_weight_as_it_is() -> None:
    rows = np.random.default_rng(0).normal(size=(8, 96)).astype(np.float32)
    before = rows.copy()
    for method in METHODS:
        round_rows(rows, Grid(4, 32), method, moments_of(correlated(96)))
    np.testing.assert_array_equal(rows, before)


def correlated(width: int, seed: int = 1) -> Float:
    """Inputs [512, width] that are mixtures of a few directions, as a model's are."""
    rng = np.random.default_rng(seed)
    few = rng.normal(size=(512, max(2, width // 8))) @ rng.normal(size=(max(2, width // 8), width))
    noise = rng.normal(size=(512, width))
    return np.asarray(few + 0.5 * noise, np.float32)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block", [None, 32, 128])
@pytest.mark.parametrize(("seed", "width"), [(0, 200), (1, 64), (2, 96)])
def test_gptq_loses_much_less_of_the_output(
    bits: Literal[4, 8], block: int | None, seed: int, width: int
) -> None:
    rows = np.random.default_rng(seed).normal(size=(24, width)).astype(np.float32)
    moments = moments_of(correlated(width, seed + 10))
    search, gptq = (
        output_error(rows, round_rows(rows, Grid(bits, block), method, moments), moments)
        for method in ("search", "gptq")
    )
    assert gptq < 0.6 * search


def output_error(rows: Float, rounded: Rounded, moments: Moments) -> float:
    """The mean square of the error of `x @ rows.T`, from the second moments of x."""
    off = (rows - rounded.values()).astype(np.float64)
    total, start = 0.0, 0
    for second in moments.second:
        part = off[:, start : start + len(second)]
        total += float(np.trace(part @ second.astype(np.float64) @ part.T))
        start += len(second)
    assert start == rows.shape[1]
    return total


def test_gptq_takes_second_moments_in_parts() -> None:
    """Of wide inputs only neighbours' moments are kept; a part need not end where a block does."""
    rows = np.random.default_rng(3).normal(size=(16, 128)).astype(np.float32)
    whole = moments_of(correlated(128)).second[0]
    halves = (whole[:72, :72], whole[72:, 72:])
    moments = plain(np.diag(whole).copy(), halves)
    search, gptq = (
        output_error(rows, round_rows(rows, Grid(4, 32), method, moments), moments)
        for method in ("search", "gptq")
    )
    assert gptq < 0.6 * search


def test_gptq_bears_inputs_that_are_always_zero() -> None:
    x = correlated(64)
    x[:, 16:48] = 0
    rows = np.random.default_rng(0).normal(size=(8, 64)).astype(np.float32)
    search, gptq = (round_rows(rows, Grid(4, 32), m, moments_of(x)) for m in ("search", "gptq"))
    np.testing.assert_array_equal(gptq.codes[:, 16:48], search.codes[:, 16:48])
    assert (gptq.codes != search.codes).any()
    nothing = round_rows(rows, Grid(4, 32), "gptq", moments_of(np.zeros((4, 64), np.float32)))
    assert np.abs(rows - nothing.values()).max() < 1


def test_gptq_without_second_moments_is_search() -> None:
    rows = np.random.default_rng(0).normal(size=(8, 64)).astype(np.float32)
    moments = moments_of(correlated(64), second=False)
    search, gptq = (round_rows(rows, Grid(4, 32), m, moments) for m in ("search", "gptq"))
    np.testing.assert_array_equal(gptq.codes, search.codes)


def test_values_are_codes_times_scales() -> None:
    codes = np.array([[1, -2, 3], [0, 7, -8]], np.int8)
    scales = np.array([[0.5, 2], [1, -0.25]], np.float32)
    np.testing.assert_array_equal(
        Rounded(codes, scales, 2).values(), [[0.5, -1, 6], [0, 7, 2]], strict=False
    )


# --- what calibration keeps

_x = arrays(np.float32, st.tuples(st.integers(1, 6), st.just(70)), elements=_even)
_factors = arrays(np.float32, 70, elements=st.floats(-4, 4, width=32))


@given(_x, _factors)
def test_scaled_moments_are_those_of_scaled_inputs(x: Float, factors: Float) -> None:
    found, wanted = moments_of(x).scaled(factors), moments_of(x * factors)
    np.testing.assert_allclose(found.largest, wanted.largest, rtol=1e-5)
    np.testing.assert_allclose(found.squares, wanted.squares, rtol=1e-4, atol=1e-12)
    for one, two in zip(found.second, wanted.second, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-3)


@given(_x, st.floats(0.125, 8, width=32))
def test_peaks_grow_with_all_inputs(x: Float, factor: float) -> None:
    found = moments_of(x).scaled(np.full(70, factor, np.float32))
    wanted = moments_of(x * np.float32(factor))
    np.testing.assert_allclose(found.peaks, wanted.peaks, rtol=1e-4, atol=1e-12)
    assert found.peak == pytest.approx(wanted.peak, rel=1e-4, abs=1e-12)


def test_a_token_of_weight_four_counts_as_four_tokens() -> None:
    x = correlated(70)[:3]
    heavy, often = Accumulator(70, second=True), Accumulator(70, second=True)
    heavy.add(x, 4.0)
    heavy.add(-x[:1], 1.0)
    often.add(np.concatenate([x, x, x, x, -x[:1]]), 1.0)
    one, two = heavy.moments(), often.moments()
    for name in ("largest", "squares", "peaks", "peak"):
        np.testing.assert_allclose(getattr(one, name), getattr(two, name), rtol=1e-5)
    np.testing.assert_allclose(one.second[0], two.second[0], rtol=1e-4, atol=1e-4)


def test_moments_are_means_over_tokens() -> None:
    x = np.array([[1, -2, 0], [3, 0, 0]], np.float32)
    found = moments_of(x)
    np.testing.assert_array_equal(found.largest, [3, 2, 0])
    np.testing.assert_array_equal(found.squares, [5, 2, 0])
    np.testing.assert_array_equal(found.peaks, [6.5])
    assert found.peak == 6.5
    np.testing.assert_array_equal(found.second[0], [[5, -1, 0], [-1, 2, 0], [0, 0, 0]])
