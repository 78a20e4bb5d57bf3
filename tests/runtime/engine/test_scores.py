import numpy as np
import pytest

from paligemma_edge.runtime.engine.logits import HostRow
from paligemma_edge.runtime.errors import DeviceError


@pytest.mark.parametrize("size", [1, 7, 1 << 15, 100_001])
@pytest.mark.parametrize("scale", [0.1, 3.0, 1000.0])
def test_they_are_the_logarithm_of_the_softmax(size: int, scale: float) -> None:
    logits = np.random.default_rng(size).normal(0, scale, size).astype(np.float32)
    exact = logits.astype(np.float64)
    peak = exact.max()
    expected = exact - peak - np.log(np.exp(exact - peak).sum())
    tokens = np.unique([0, size // 2, size - 1, int(logits.argmax())])
    row = HostRow(np.append(logits, np.float32(99)), size)  # the last one is no answer
    np.testing.assert_allclose(row.log_probs(tokens), expected[tokens], rtol=0, atol=2e-6)
    assert [row.log_prob(int(token)) for token in tokens] == row.log_probs(tokens).tolist()


def test_a_token_that_cannot_be_is_infinitely_unlikely() -> None:
    logits = np.array([0.0, -np.inf, 0.0], np.float32)
    assert HostRow(logits, 3).log_prob(1) == -np.inf
    assert HostRow(logits, 3).log_prob(0) == pytest.approx(-np.log(2))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_an_error(value: float) -> None:
    logits = np.zeros(9, np.float32)
    logits[4] = value
    with pytest.raises(DeviceError, match=f"produced {value} where logits were wanted"):
        HostRow(logits, 9).log_prob(0)


def test_logits_that_are_all_minus_infinity_are_an_error() -> None:
    with pytest.raises(DeviceError, match="produced -inf"):
        HostRow(np.full(3, -np.inf, np.float32), 3).log_probs(np.array([0]))
