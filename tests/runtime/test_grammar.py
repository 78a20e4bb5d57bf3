from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from paligemma_edge.runtime.errors import DeviceError
from paligemma_edge.runtime.grammar import Ended, choose
from paligemma_edge.runtime.sampling import Greedy, Sampling, TopSampling

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


@st.composite
def choices(draw: st.DrawFn) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Logits with many ties, some of them no numbers where they are forbidden; what is allowed."""
    pairs = st.tuples(st.integers(-3, 3), st.booleans(), st.sampled_from([0, 0, 0, np.nan, np.inf]))
    values, allowed, spoilt = zip(*draw(st.lists(pairs, min_size=1, max_size=60)), strict=True)
    flags = np.array(allowed)
    flags[draw(st.integers(0, len(flags) - 1))] = True
    forbidden = np.where(np.array(spoilt) == 0, values, spoilt)
    return np.where(flags, values, forbidden).astype(np.float32), flags


@given(choices(), POLICIES, st.integers(0, 5))
def test_a_choice_is_that_of_a_row_whose_other_logits_are_minus_infinity(
    row: tuple[NDArray[np.float32], NDArray[np.bool_]], sampling: Sampling, position: int
) -> None:
    logits, flags = row
    expected = sampling.choose(np.where(flags, logits, np.float32(-np.inf)), position)
    assert flags[expected]
    assert choose(sampling, logits, flags, position) == expected
    assert choose(sampling, logits, np.flatnonzero(flags), position) == expected


@pytest.mark.parametrize("sampling", [Greedy(), TopSampling()])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_allowed_logit_that_is_no_number_is_an_error(sampling: Sampling, value: float) -> None:
    logits = np.array([0, value, 5], np.float32)
    for allowed in (np.array([True, True, False]), np.array([0, 1])):
        with pytest.raises(DeviceError, match=f"produced {value}"):
            choose(sampling, logits, allowed, 0)


@pytest.mark.parametrize("sampling", [Greedy(), TopSampling()])
def test_allowed_logits_that_are_all_impossible_are_an_error(sampling: Sampling) -> None:
    logits = np.array([-np.inf, 3], np.float32)
    for allowed in (np.array([True, False]), np.array([0])):
        with pytest.raises(DeviceError, match="produced -inf"):
            choose(sampling, logits, allowed, 0)


def test_behind_the_end_only_the_end_may_follow() -> None:
    ended = Ended(7)
    assert ended.allowed.tolist() == [7]
    assert ended.after(7) == ended
