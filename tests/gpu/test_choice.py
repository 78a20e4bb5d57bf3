"""What a GPU chooses and picks out of logits is what NumPy does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from paligemma_edge import PaliGemma
from paligemma_edge.runtime import contract
from paligemma_edge.runtime.device.device import Device
from paligemma_edge.runtime.device.session import Session
from paligemma_edge.runtime.engine.decode_step import Stepper
from paligemma_edge.runtime.engine.device_logits import DeviceLogits
from paligemma_edge.runtime.engine.logits import HostRow, Shortlist
from tests.gpu.on_gpu import IMAGE_ID, SHAPES, VARIANTS, VOCAB, Requests, Where

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def graphs(prepared: Path, device: Device) -> dict[str, Session]:
    """The choice of a token and the graphs beside it, at the released models' vocabulary."""
    return {
        name: Session(device.open_session(prepared / f"{name}.onnx"), device.memory)
        for name in ("choice", contract.PICK, contract.SHORTLIST)
    }


def rows() -> dict[str, NDArray[np.float32]]:
    """Rows [vocab] whose largest logits are those of tokens that are never an answer."""
    random = np.random.default_rng(0)
    values = {"random": random.normal(0, 3, VOCAB), "all equal": np.zeros(VOCAB)}
    values["coarse"] = np.round(random.normal(0, 1, VOCAB) * 4) / 4  # many of each value
    values["half"] = random.normal(0, 8, VOCAB).astype(np.float16).astype(np.float32)
    for name, tokens in {
        "two in one block": (700, 701),
        "two blocks": (200_000, 90_000),
        "first and last": (0, IMAGE_ID - 1),
        "last": (IMAGE_ID - 1,),
        "many": (3, 511, 512, 513, 100_000, 257_000),
    }.items():
        values[name] = random.normal(0, 1, VOCAB)
        values[name][list(tokens)] = 20
    values["all but one far away"] = np.full(VOCAB, -1e30)
    values["all but one far away"][77] = -3
    for row in values.values():
        row[IMAGE_ID:] = 99
    return {name: row.astype(np.float32) for name, row in values.items()}


def run(session: Session, inputs: Mapping[str, NDArray[Any]], *outputs: str) -> list[NDArray[Any]]:
    """Run once, from arrays to arrays."""
    values = {name: session.memory.put(array) for name, array in inputs.items()}
    binding = session.binding()
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    return [session.memory.read(value).copy() for value in session.finish(binding, *outputs)]


def choose(
    graphs: dict[str, Session], given: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    names = (contract.NEXT_TOKEN, contract.NEXT_LOG_PROB)
    token, log_prob = run(graphs["choice"], {"given": given[:, None]}, *names)
    return token[:, 0], log_prob[:, 0]


def log_softmax(row: NDArray[np.float32]) -> NDArray[np.float64]:
    answer_logits = row[:IMAGE_ID].astype(np.float64)
    peak = answer_logits.max()
    log_probs: NDArray[np.float64] = (
        answer_logits - peak - np.log(np.exp(answer_logits - peak).sum())
    )
    return log_probs


def test_the_first_of_the_largest_is_chosen(graphs: dict[str, Session]) -> None:
    planted = rows()
    tokens, log_probs = choose(graphs, np.stack(list(planted.values())))
    wanted = {name: int(row[:IMAGE_ID].argmax()) for name, row in planted.items()}
    assert dict(zip(planted, tokens.tolist(), strict=True)) == wanted
    expected = [log_softmax(row)[wanted[name]] for name, row in planted.items()]
    np.testing.assert_allclose(log_probs, expected, atol=1e-4)


def test_a_row_is_chosen_from_as_it_is_alone(graphs: dict[str, Session]) -> None:
    stacked = np.stack(list(rows().values()))
    tokens, log_probs = choose(graphs, stacked)
    for place, row in enumerate(stacked):
        token, log_prob = choose(graphs, row[None])
        assert token[0] == tokens[place]
        assert log_prob[0] == pytest.approx(log_probs[place], abs=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_shows_in_the_log_probability(
    graphs: dict[str, Session], value: float
) -> None:
    row = np.random.default_rng(1).normal(0, 1, (1, VOCAB)).astype(np.float32)
    row[0, 12_345] = value
    assert not np.isfinite(choose(graphs, row)[1][0])


@pytest.mark.parametrize("tokens", [[5], [3, 1, 257_215, 1], list(range(0, VOCAB, 97))])
def test_what_is_picked_are_those_logits(graphs: dict[str, Session], tokens: list[int]) -> None:
    for row in rows().values():
        wanted = {contract.LOGITS: row[None, None], contract.TOKENS: np.array(tokens)}
        (picked,) = run(graphs[contract.PICK], wanted, contract.PICKED)
        np.testing.assert_array_equal(picked, row[tokens])


def test_a_shortlist_holds_the_largest(graphs: dict[str, Session]) -> None:
    names = (contract.TOP_TOKENS, contract.TOP_LOGITS)
    for name, row in rows().items():
        inputs = {contract.LOGITS: row[None, None]}
        short = Shortlist(*run(graphs[contract.SHORTLIST], inputs, *names))
        answer_logits = row[:IMAGE_ID]
        assert len(set(short.tokens.tolist())) == contract.SHORTLISTED, name
        np.testing.assert_array_equal(short.logits, answer_logits[short.tokens])
        np.testing.assert_array_equal(
            np.sort(short.logits), np.sort(answer_logits)[-contract.SHORTLISTED :]
        )
        assert short.least == np.sort(answer_logits)[-contract.SHORTLISTED]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_decoder_says_what_its_own_logits_say(
    variant: str, where: Where, requests: Requests, patched: pytest.MonkeyPatch
) -> None:
    model = where.model(SHAPES, variant)
    step = Stepper.step
    steps = 0

    def compared(self: Stepper, tokens: list[int]) -> Any:  # noqa: ANN401
        nonlocal steps
        logits, steps = step(self, tokens), steps + 1
        for slot in range(len(tokens)):
            compare(model, logits, slot)  # type: ignore[arg-type]
        return logits

    patched.setattr(Stepper, "step", compared)
    model.generate_batch(requests[:12], max_batch_size=3, max_new_tokens=24)
    assert steps > 20


def compare(model: PaliGemma, logits: DeviceLogits, slot: int) -> None:
    row = logits[slot]
    same = HostRow(row.whole.copy(), model.bundle.manifest.tokenizer.image_id)
    assert row.best == same.best
    assert row.log_prob(row.best) == pytest.approx(same.log_prob(same.best), abs=1e-4)
    tokens = np.array([5, 1, 300, 2151])
    np.testing.assert_array_equal(row.at(tokens), same.at(tokens))
    np.testing.assert_allclose(row.log_probs(tokens), same.log_probs(tokens), atol=1e-4)
    short = row.shortlist
    np.testing.assert_array_equal(short.logits, same.answer_logits[short.tokens])
    np.testing.assert_array_equal(np.sort(short.logits), np.sort(same.answer_logits)[-256:])
