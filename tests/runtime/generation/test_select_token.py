"""A choice over a row on the host, and over one of which a GPU gives no more than is asked."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from paligemma_edge.runtime.engine.logits import HostRow, Shortlist
from paligemma_edge.runtime.errors import DeviceError
from paligemma_edge.runtime.generation.sampling import Greedy, Sampling, TopSampling
from paligemma_edge.runtime.generation.select_token import select_token

POLICIES = st.one_of(
    st.just(Greedy()),
    st.builds(
        TopSampling,
        temperature=st.sampled_from([0.2, 1.0, 3.0]),
        top_k=st.sampled_from([0, 1, 3, 1000]),
        top_p=st.sampled_from([0.0, 0.3, 0.9, 1.0]),
        seed=st.integers(0, 1000),
    ),
)


class FarRow(HostRow):
    """A row with a shortlist of 4, which remembers whether all of it was looked at."""

    @property
    def shortlist(self) -> Shortlist:  # type: ignore[override]
        answer_logits = self.whole[: self.image_id]
        top = np.argsort(-answer_logits, kind="stable")[:4]
        return Shortlist(top, answer_logits[top])


@dataclass(frozen=True, eq=False)
class WatchedRow(FarRow):
    """One that notes when all of it is looked at."""

    looks: list[str] = field(default_factory=list)

    @property
    def best(self) -> int:
        return int(self.whole[: self.image_id].argmax())

    @property
    def answer_logits(self) -> NDArray[np.float32]:
        self.looks.append("all")
        return super().answer_logits


@st.composite
def rows(draw: st.DrawFn) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Logits with many ties; what is allowed, at least one."""
    pairs = st.tuples(st.integers(-3, 3), st.booleans())
    values, allowed = zip(*draw(st.lists(pairs, min_size=1, max_size=60)), strict=True)
    flags = np.array(allowed)
    flags[draw(st.integers(0, len(flags) - 1))] = True
    return np.array(values, np.float32), flags


@given(rows(), POLICIES, st.integers(0, 5), st.sampled_from([HostRow, FarRow]))
def test_a_choice_is_that_of_a_row_whose_other_logits_are_minus_infinity(
    drawn: tuple[NDArray[np.float32], NDArray[np.bool_]],
    sampling: Sampling,
    position: int,
    kind: type[HostRow],
) -> None:
    logits, flags = drawn
    row = kind(np.append(logits, np.float32(9)), len(logits))  # the last one is no answer
    expected = sampling.choose(np.where(flags, logits, np.float32(-np.inf)), position)
    assert flags[expected]
    assert select_token(sampling, row, flags, position) == expected
    assert select_token(sampling, row, np.flatnonzero(flags), position) == expected
    assert select_token(sampling, row, None, position) == sampling.choose(logits, position)


def test_no_more_of_a_far_row_is_looked_at_than_is_needed() -> None:
    logits = np.arange(50, dtype=np.float32)
    row = WatchedRow(logits, 50)
    flags = np.ones(50, bool)
    assert select_token(TopSampling(top_k=3, seed=1), row, None, 0) >= 47
    assert select_token(Greedy(), row, np.array([3, 7]), 0) == 7
    flags[48:] = False
    assert select_token(Greedy(), row, flags, 0) == 47
    assert row.looks == []
    flags[47:] = False
    assert select_token(Greedy(), row, flags, 0) == 46  # the last of a shortlist may have equals
    assert select_token(TopSampling(top_k=4, seed=1), row, None, 0) >= 46
    assert row.looks == ["all"] * 2


@pytest.mark.parametrize("sampling", [Greedy(), TopSampling()])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_allowed_logit_that_is_nan_is_an_error(sampling: Sampling, value: float) -> None:
    row = HostRow(np.array([0, value, 5], np.float32), 3)
    for allowed in (None, np.array([True, True, False]), np.array([0, 1])):
        with pytest.raises(DeviceError, match=f"produced {value}"):
            select_token(sampling, row, allowed, 0)


@pytest.mark.parametrize("sampling", [Greedy(), TopSampling()])
def test_allowed_logits_that_are_all_impossible_are_an_error(sampling: Sampling) -> None:
    row = HostRow(np.array([-np.inf, 3], np.float32), 2)
    for allowed in (np.array([True, False]), np.array([0])):
        with pytest.raises(DeviceError, match="produced -inf"):
            select_token(sampling, row, allowed, 0)


@given(rows(), st.integers(1, 5))
def test_a_shortlist_knows_whether_it_holds_all_that_equal_its_last(
    drawn: tuple[NDArray[np.float32], NDArray[np.bool_]], count: int
) -> None:
    logits, _ = drawn
    top = np.argsort(-logits, kind="stable")[:4]
    short = Shortlist(top, logits[top])
    assert short.tokens.tolist() == sorted(top.tolist())
    if short.holds_top(count):
        least = np.sort(logits)[-count]
        assert set(np.flatnonzero(logits >= least)) <= set(short.tokens.tolist())
