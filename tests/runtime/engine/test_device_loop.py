"""The loop of a GPU, run on the CPU: same graphs, same code, and what it copies."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from paligemma_edge import PaliGemma
from paligemma_edge.quantize.fidelity.questions import sample_questions
from paligemma_edge.quantize.quantizer import QuantizeOptions, quantize
from paligemma_edge.quantize.recipes.recipe import load_recipe
from paligemma_edge.runtime.device.ort import ort
from paligemma_edge.runtime.engine.decode_step import Stepper
from paligemma_edge.runtime.engine.device_logits import DeviceLogits, DeviceRow
from paligemma_edge.runtime.engine.logits import HostRow
from paligemma_edge.runtime.errors import BundleError, DeviceError
from paligemma_edge.runtime.generation.loop import ActiveSequence
from paligemma_edge.runtime.generation.sampling import TopSampling
from tests.helpers.gpu_on_host import Copies, open_on_host

RECIPES = ("cuda-fp16", "cuda-int8", "cuda-int4")
SLOTS = 3


@pytest.fixture(scope="module")
def bundle(shapes_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = Path(shutil.copytree(shapes_bundle, tmp_path_factory.mktemp("gpu") / "GPU.bundle"))
    quantize(
        copy, [load_recipe(r) for r in RECIPES], QuantizeOptions(calibrate=False, report=False)
    )
    return copy


@pytest.fixture(scope="module")
def gpu(bundle: Path) -> tuple[PaliGemma, Copies]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        return open_on_host(bundle, "cuda-fp16", monkeypatch)


@pytest.fixture(scope="module")
def requests() -> list[Any]:
    return [(question.image, question.prompt) for question in sample_questions()]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[DeviceLogits]:
    """What each step of the test gave."""
    seen: list[DeviceLogits] = []
    step = Stepper.step

    def watched(self: Stepper, tokens: list[int]) -> Any:  # noqa: ANN401
        seen.append(step(self, tokens))  # type: ignore[arg-type]
        return seen[-1]

    monkeypatch.setattr(Stepper, "step", watched)
    return seen


def test_answers_are_those_of_the_lossless_variant(
    gpu: tuple[PaliGemma, Copies], shapes_model: PaliGemma, requests: list[Any]
) -> None:
    actual = gpu[0].generate_batch(requests, max_batch_size=SLOTS)
    expected = shapes_model.generate_batch(requests, max_batch_size=SLOTS)
    same = [a.token_ids == b.token_ids for a, b in zip(actual, expected, strict=True)]
    assert sum(same) >= 0.95 * len(same)
    for one, other, equal in zip(actual, expected, same, strict=True):
        if equal:
            np.testing.assert_allclose(one.log_probs, other.log_probs, atol=0.02)


@pytest.mark.parametrize("variant", ["cuda-int8", "cuda-int4"])
def test_variants_with_rounded_weights_run_by_the_same_loop(
    bundle: Path, variant: str, monkeypatch: pytest.MonkeyPatch, requests: list[Any]
) -> None:
    model, _ = open_on_host(bundle, variant, monkeypatch)
    alone = [model.generate(*request).token_ids for request in requests[:4]]
    assert [g.token_ids for g in model.generate_batch(requests[:4], max_batch_size=SLOTS)] == alone


def test_a_greedy_token_costs_ids_and_lengths_to_the_gpu_and_the_choice_back(
    gpu: tuple[PaliGemma, Copies], requests: list[Any]
) -> None:
    model, copies = gpu
    engine = model._loaded.engine
    cache = engine.cache(SLOTS, 90)
    features = model.encode(requests[0][0])._features
    ids = model._loaded.encoder.encode(requests[0][1], 1)
    tokens = [engine.prefill(cache, slot, features, ids).best for slot in range(SLOTS)]
    stepper = engine.stepper(cache, SLOTS)
    stepper.step(tokens)
    copies.take()
    for _ in range(4):
        logits = stepper.step(tokens)
        tokens = [logits[slot].best for slot in range(SLOTS)]
        assert all(logits[slot].log_prob(tokens[slot]) <= 0 for slot in range(SLOTS))
        assert copies.take() == (SLOTS * (8 + 4), SLOTS * (8 + 4))
        assert engine.stepper(cache, SLOTS) is stepper


def test_nothing_of_an_image_comes_back_to_the_host(
    gpu: tuple[PaliGemma, Copies], requests: list[Any]
) -> None:
    model, copies = gpu
    encoded = model.encode(requests[0][0])
    copies.take()
    assert encoded._features.shape() == [1, 64, 192]
    assert copies.take() == (3 * 112 * 112 * 4, 0)


def test_a_grammar_brings_back_no_more_than_it_allows(
    gpu: tuple[PaliGemma, Copies], requests: list[Any], steps: list[DeviceLogits]
) -> None:
    model, copies = gpu
    encoded = model.encode(requests[0][0])
    encoded.caption()
    copies.take()
    actual = encoded.detect("star ; circle")
    assert len(actual)
    row = 2176 * 4
    assert copies.take()[1] < (len(steps) + 1) * row
    assert all("on_host" not in vars(step) for step in steps)


def test_a_sample_of_the_likeliest_brings_back_the_shortlist(
    gpu: tuple[PaliGemma, Copies],
    shapes_model: PaliGemma,
    requests: list[Any],
    steps: list[DeviceLogits],
) -> None:
    policy = TopSampling(temperature=0.8, top_k=20, seed=3)
    actual = gpu[0].generate(*requests[0], sampling=policy, max_new_tokens=12)
    assert all("on_host" not in vars(step) for step in steps)
    assert (
        actual.token_ids
        == shapes_model.generate(*requests[0], sampling=policy, max_new_tokens=12).token_ids
    )


def test_a_sample_of_all_is_that_of_the_same_logits_on_the_host(
    gpu: tuple[PaliGemma, Copies], requests: list[Any], steps: list[DeviceLogits]
) -> None:
    policy = TopSampling(temperature=0.5, seed=5)
    actual = gpu[0].generate(*requests[0], sampling=policy, max_new_tokens=1)
    (row,) = first_rows(gpu[0], requests[:1])
    assert actual.token_ids[0] == policy.choose(row.answer_logits, 0)


def first_rows(model: PaliGemma, requests: list[Any]) -> list[DeviceRow]:
    """The logits after some prompts."""
    rows = []
    for image, prompt in requests:
        ids = model._loaded.encoder.encode(prompt, 1)
        cache = model._loaded.engine.cache(1, 64 + len(ids))
        rows.append(model._loaded.engine.prefill(cache, 0, model.encode(image)._features, ids))
    return rows  # type: ignore[return-value]


def test_what_is_told_of_a_row_is_what_its_logits_say(
    gpu: tuple[PaliGemma, Copies], requests: list[Any]
) -> None:
    tokens = np.array([5, 1, 300, 2151])
    for row in first_rows(gpu[0], requests[:6]):
        same = HostRow(row.whole.copy(), 2152)
        assert row.best == same.best
        assert row.log_prob(row.best) == pytest.approx(same.log_prob(row.best), abs=1e-5)
        assert row.log_prob(7) == pytest.approx(same.log_prob(7), abs=1e-4)
        np.testing.assert_allclose(row.log_probs(tokens), same.log_probs(tokens), atol=1e-4)
        assert np.array_equal(row.at(tokens), same.at(tokens))
        short = row.shortlist
        assert np.array_equal(short.logits, same.whole[short.tokens])
        assert sorted(short.logits)[0] == np.sort(same.answer_logits)[-256]


def test_a_box_costs_the_logits_of_all_locations_once(
    gpu: tuple[PaliGemma, Copies], shapes_model: PaliGemma, requests: list[Any]
) -> None:
    """1,024 logits to the host where a box begins; the ids that choose them go up once."""
    model, copies = gpu
    image, prompt = next(r for r in requests if r[1].startswith("detect "))
    model.generate(image, prompt)
    copies.take()
    watched = model.generate(image, prompt)
    boxes = len(watched.answer.objects)
    assert boxes and len(watched.box_log_probs) == boxes
    with_boxes = copies.take()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ActiveSequence, "_watch_boxes", lambda *_: None)
        assert model.generate(image, prompt).token_ids == watched.token_ids
    up, down = copies.take()
    assert (with_boxes[0] - up, with_boxes[1] - down) == (0, boxes * 4096)
    expected = shapes_model.generate(image, prompt)
    assert expected.token_ids == watched.token_ids
    assert watched.box_log_probs == pytest.approx(expected.box_log_probs, abs=0.02)


def test_a_box_that_the_model_did_not_want_most_is_noted_too(
    gpu: tuple[PaliGemma, Copies], requests: list[Any]
) -> None:
    locations = range(1000, 2024)
    for row in first_rows(gpu[0], requests[:6]):
        same = HostRow(row.whole.copy(), 2152)
        wanted = same.log_prob_of_any(locations)
        assert row.log_prob_of_any(locations) == pytest.approx(wanted, abs=1e-4)
        assert wanted == pytest.approx(
            np.logaddexp.reduce(same.log_probs(np.arange(1000, 2024))), abs=1e-4
        )


def test_scores_of_choices_are_those_of_the_lossless_variant(
    gpu: tuple[PaliGemma, Copies], shapes_model: PaliGemma, requests: list[Any]
) -> None:
    arguments = (requests[0][0], "answer en what color is it?", ["black", "red", "a red star"])
    actual, expected = (
        gpu[0].classify(*arguments).log_probs,
        shapes_model.classify(*arguments).log_probs,
    )
    np.testing.assert_allclose(list(actual.values()), list(expected.values()), atol=0.05)


def test_recorded_steps_are_the_same_steps(
    bundle: Path,
    gpu: tuple[PaliGemma, Copies],
    monkeypatch: pytest.MonkeyPatch,
    requests: list[Any],
) -> None:
    """Memory and lengths as a recorded step needs them; that it is replayed, a GPU alone shows."""
    model, _ = open_on_host(bundle, "cuda-fp16", monkeypatch, cuda_graph=True, max_batch_size=SLOTS)
    actual = model.generate_batch(requests)
    expected = gpu[0].generate_batch(requests, max_batch_size=SLOTS)
    assert [(g.token_ids, g.log_probs) for g in actual] == [
        (g.token_ids, g.log_probs) for g in expected
    ]
    planned = model._loaded.pipeline.cache_pool._planned
    assert planned is not None
    assert {count for _, count, _ in planned.steppers} <= {1, 2, 3}
    assert len({id(s.binding) for s in planned.steppers.values()}) == len(planned.steppers)
    assert all(stepper.outputs is planned.outputs for stepper in planned.steppers.values())


@pytest.mark.parametrize("way", ["put", "write", "read"])
def test_memory_that_fails_midway_is_one_clear_error(
    gpu: tuple[PaliGemma, Copies], requests: list[Any], monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    model = gpu[0]
    expected = model.generate(*requests[0])

    class Failing:
        """ONNX Runtime's values, of which every one of a kind fails."""

        @staticmethod
        def ortvalue_from_numpy(*_: object) -> None:
            raise RuntimeError("CUDA failure 2: out of memory")

    with monkeypatch.context() as patched:
        if way == "put":
            patched.setattr(ort, "OrtValue", Failing)
        else:
            name = {"write": "update_inplace", "read": "numpy"}[way]
            patched.setattr(ort.OrtValue, name, Failing.ortvalue_from_numpy)
        with pytest.raises(DeviceError, match=r"memory .*could not be .*out of memory"):
            model.generate(*requests[0])
    assert model.generate(*requests[0]) == expected  # and the next one is answered


def test_logits_that_are_no_numbers_are_an_error(
    gpu: tuple[PaliGemma, Copies], requests: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = gpu[0]._loaded.engine
    put = type(engine.memory).read

    def spoilt(self: Any, value: Any) -> NDArray[Any]:  # noqa: ANN401
        array = put(self, value)
        return np.full_like(array, np.nan) if array.dtype == np.float32 else array

    monkeypatch.setattr(type(engine.memory), "read", spoilt)
    with pytest.raises(DeviceError, match="produced nan where logits were wanted"):
        gpu[0].generate(*requests[0])


def test_a_variant_that_cannot_choose_on_its_gpu_is_refused(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import json

    old = Path(shutil.copytree(bundle, tmp_path / "old.bundle"))
    manifest = json.loads((old / "manifest.json").read_text())
    graphs = manifest["variants"]["cuda-fp16"]["graphs"]
    for name in ("pick", "shortlist"):
        del graphs[name]
    (old / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="has no pick graph; export or quantize it again"):
        open_on_host(old, "cuda-fp16", monkeypatch)
