"""A token that is chosen within the graph is the one that the host would choose."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from paligemma_edge.quantize.schemes.argmax_head import add_argmax_head, logit_graphs
from paligemma_edge.quantize.schemes.cuda_check import missing_kernels
from paligemma_edge.quantize.schemes.half import to_half
from paligemma_edge.runtime import contract
from paligemma_edge.runtime.device.ort import ort
from tests.helpers.half_graphs import load

HALF = ir.DataType.FLOAT16


def chooser(vocab: int, image_id: int) -> ir.Model:
    """A graph that gives the logits that it gets, with its choice."""
    given = ir.val("given", dtype=ir.DataType.FLOAT, shape=["batch", 1, vocab])
    node = ir.node("Identity", [given])
    logits = node.outputs[0]
    logits.name, logits.type, logits.shape = contract.LOGITS, given.type, given.shape
    graph = ir.Graph([given], [logits], nodes=[node], opset_imports={"": 23}, name="chooser")
    model = ir.Model(graph, ir_version=10)
    add_argmax_head(model, image_id)
    return model


def opened(model: ir.Model) -> ort.InferenceSession:
    data = ir.serde.serialize_model(model).SerializeToString()
    return ort.InferenceSession(data, providers=["CPUExecutionProvider"])


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    exact = logits.astype(np.float64)
    peak = exact.max(-1, keepdims=True)
    found: NDArray[np.float64] = exact - peak - np.log(np.exp(exact - peak).sum(-1, keepdims=True))
    return found


@pytest.mark.parametrize(("vocab", "answers"), [(257216, 257152), (2176, 2152), (101, 97), (5, 1)])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_choice_is_the_largest_of_the_answer_tokens(
    vocab: int, answers: int, batch: int
) -> None:
    logits = np.random.default_rng(vocab).normal(0, 4, (batch, 1, vocab)).astype(np.float32)
    logits[..., answers:] = 99
    session = opened(chooser(vocab, answers))
    names = [contract.NEXT_TOKEN, contract.NEXT_LOG_PROB]
    token, log_prob = session.run(names, {"given": logits})
    expected = log_softmax(logits[:, 0, :answers])
    assert token.tolist() == expected.argmax(-1)[:, None].tolist()
    np.testing.assert_allclose(log_prob, expected.max(-1)[:, None], atol=2e-6)


@settings(max_examples=60)
@given(st.lists(st.sampled_from([-5.0, 0.0, 3.0, 80.0]), min_size=60, max_size=60))
def test_of_equal_tokens_the_first_is_chosen(values: list[float]) -> None:
    session = opened(chooser(64, 60))
    logits = np.zeros((1, 1, 64), np.float32)
    logits[0, 0, :60] = values
    token, log_prob = session.run([contract.NEXT_TOKEN, contract.NEXT_LOG_PROB], {"given": logits})
    assert token[0, 0] == np.argmax(values)
    expected = log_softmax(logits[0, 0, :60]).max()
    assert log_prob[0, 0] == pytest.approx(expected, abs=1e-6)


def test_tokens_that_cannot_be_take_no_part() -> None:
    logits = np.full((1, 1, 64), -np.inf, np.float32)
    logits[0, 0, [40, 41]] = 2
    token, log_prob = opened(chooser(64, 60)).run(
        [contract.NEXT_TOKEN, contract.NEXT_LOG_PROB], {"given": logits}
    )
    assert token[0, 0] == 40
    assert log_prob[0, 0] == pytest.approx(-np.log(2))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_with_nan_or_inf_have_a_log_prob_of_nan(value: float) -> None:
    logits = np.zeros((1, 1, 64), np.float32)
    logits[0, 0, 31] = value
    (log_prob,) = opened(chooser(64, 60)).run([contract.NEXT_LOG_PROB], {"given": logits})
    assert np.isnan(log_prob).all()


def test_rows_are_looked_at_where_they_are() -> None:
    graphs = {name: opened(model) for name, model in logit_graphs(2176, 2152).items()}
    logits = np.random.default_rng(0).normal(0, 4, (1, 1, 2176)).astype(np.float32)
    logits[..., 2152:] = 99
    tokens = np.array([2175, 0, 7, 7])
    (picked,) = graphs[contract.PICK].run(None, {contract.LOGITS: logits, contract.TOKENS: tokens})
    assert np.array_equal(picked, logits[0, 0, tokens])
    names = [contract.TOP_TOKENS, contract.TOP_LOGITS]
    top, values = graphs[contract.SHORTLIST].run(names, {contract.LOGITS: logits})
    assert top.tolist() == np.argsort(-logits[0, 0, :2152], kind="stable")[:256].tolist()
    assert np.array_equal(values, logits[0, 0, top])


def test_a_shortlist_is_no_longer_than_the_answer_tokens() -> None:
    session = opened(logit_graphs(40, 30)[contract.SHORTLIST])
    (values,) = session.run([contract.TOP_LOGITS], {contract.LOGITS: np.zeros((1, 1, 40), "f4")})
    assert values.shape == (30,)


def test_cuda_has_kernels_for_all_of_it(shapes_bundle: Path) -> None:
    decoder = load(shapes_bundle)["decoder"]
    to_half(decoder, HALF)
    add_argmax_head(decoder, 2152)
    assert missing_kernels("decoder", decoder, HALF) == []
    for name, model in logit_graphs(2176, 2152).items():
        assert missing_kernels(name, model, HALF) == []
