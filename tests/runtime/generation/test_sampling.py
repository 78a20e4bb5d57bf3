import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from paligemma_edge.runtime.errors import DeviceError, OptionError
from paligemma_edge.runtime.generation.sampling import Greedy, Sampling, TopSampling

VOCAB = 3000


def logits_of(seed: int, spread: float = 3.0, size: int = VOCAB) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, spread, size).astype(np.float32)


def reference_probabilities(
    logits: NDArray[np.float32], temperature: float, top_k: int, top_p: float
) -> NDArray[np.float64]:
    scores = torch.from_numpy(logits)[None].double()
    no_ids = torch.empty((1, 0), dtype=torch.long)
    scores = TemperatureLogitsWarper(temperature)(no_ids, scores)
    if top_k:
        scores = TopKLogitsWarper(top_k)(no_ids, scores)
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(no_ids, scores)
    probabilities: NDArray[np.float64] = scores.softmax(-1)[0].numpy()
    return probabilities


def test_greedy_takes_the_largest_and_of_equal_ones_the_first() -> None:
    logits = np.array([0.0, 3.0, -1.0, 3.0], np.float32)
    assert Greedy().choose(logits, 0) == 1


@pytest.mark.parametrize("temperature", [0.3, 2.5])
@pytest.mark.parametrize("top_k", [0, 1, 40, VOCAB + 5])
@pytest.mark.parametrize("top_p", [0.0, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("spread", [0.01, 3.0, 20.0])
def test_the_candidates_are_those_of_transformers(
    temperature: float, top_k: int, top_p: float, spread: float
) -> None:
    logits = logits_of(7, spread)
    expected = reference_probabilities(logits, temperature, top_k, top_p)
    tokens, weights = TopSampling(temperature, top_k, top_p).candidates(logits)
    drawable = weights > 0  # without top-p the reference keeps tokens that underflow to zero, too
    assert tokens[drawable].tolist() == np.flatnonzero(expected).tolist()
    np.testing.assert_allclose(weights / weights.sum(), expected[tokens], rtol=1e-9)


def test_ties_at_the_last_place_of_top_k_are_all_kept() -> None:
    logits = np.array([1.0, 5.0, 2.0, 2.0, 2.0, 0.0], np.float32)
    assert TopSampling(top_k=2).candidates(logits)[0].tolist() == [1, 2, 3, 4]


def test_a_forbidden_token_is_never_drawn() -> None:
    logits = np.full(50, -np.inf, np.float32)
    logits[[7, 31]] = [1.0, 1.2]
    assert {TopSampling(temperature=5.0, seed=s).choose(logits, s) for s in range(50)} == {7, 31}


def test_the_frequencies_are_the_probabilities() -> None:
    logits = np.log(np.array([0.1, 0.2, 0.7], np.float32))
    policy = TopSampling(seed=3)
    counts = np.bincount([policy.choose(logits, position) for position in range(4000)], minlength=3)
    np.testing.assert_allclose(counts / 4000, [0.1, 0.2, 0.7], atol=0.03)


def test_a_choice_depends_on_seed_and_position_alone() -> None:
    logits = logits_of(1, 0.5)
    policy = TopSampling(seed=11)
    forwards = [policy.choose(logits, position) for position in range(20)]
    backwards = [TopSampling(seed=11).choose(logits, position) for position in reversed(range(20))]
    assert forwards == backwards[::-1]
    assert len(set(forwards)) > 10
    assert forwards != [TopSampling(seed=12).choose(logits, position) for position in range(20)]


def test_the_random_numbers_are_the_same_in_every_release() -> None:
    uniform = np.arange(1000, dtype=np.float32) * 0
    assert [TopSampling(seed=5).choose(uniform, position) for position in range(4)] == [
        733,
        248,
        847,
        53,
    ]


@pytest.mark.parametrize("policy", [Greedy(), TopSampling(top_k=3), TopSampling(top_p=0.5)])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_nan_or_infinite_are_an_error(policy: Sampling, value: float) -> None:
    logits = logits_of(2, size=20)
    logits[13] = value
    with pytest.raises(DeviceError, match=f"produced {value}"):
        policy.choose(logits, 0)


def test_logits_that_forbid_everything_are_an_error() -> None:
    with pytest.raises(DeviceError, match="produced -inf"):
        TopSampling().choose(np.full(5, -np.inf, np.float32), 0)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": "warm"},
        {"top_k": -1},
        {"top_k": 2.5},
        {"top_k": True},
        {"top_p": 1.1},
        {"top_p": -0.1},
        {"seed": -1},
        {"seed": 2**64},
        {"seed": None},
    ],
)
def test_a_value_out_of_range_is_named_in_one_line(options: dict[str, object]) -> None:
    (name,) = options
    with pytest.raises(OptionError, match=f"^{name} is .*wanted") as caught:
        TopSampling(**options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_extreme_temperatures_do_not_fail() -> None:
    logits = logits_of(4, 30.0)
    assert TopSampling(temperature=5e-324).choose(logits, 0) == logits.argmax()
    assert 0 <= TopSampling(temperature=1e300).choose(logits, 0) < VOCAB


@pytest.mark.parametrize(("uniform", "token"), [(0.0, 1), (np.nextafter(1, 0), 2)])
def test_the_ends_of_the_random_range_draw_allowed_tokens(uniform: float, token: int) -> None:
    class Fixed(TopSampling):
        def _uniform(self, position: int) -> float:
            return uniform

    logits = np.array([-np.inf, 0.0, 0.0, -np.inf], np.float32)
    assert Fixed().choose(logits, 0) == token
