"""The check on a device: digests, and a question whose answer is known."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from paligemma_edge import PaliGemma
from paligemma_edge.runtime.bundle.bundle import Bundle
from paligemma_edge.runtime.bundle.golden import (
    Golden,
    OriginalAnswer,
    pixel_grid,
    required_agreement,
)
from paligemma_edge.runtime.bundle.writer import amend_bundle
from paligemma_edge.runtime.diagnostics.golden_check import GoldenAnswer, GoldenCheck
from paligemma_edge.runtime.diagnostics.self_test import SelfTest, self_test
from paligemma_edge.runtime.engine.replay import replay
from paligemma_edge.runtime.errors import BundleError, OptionError, TokenizerError
from paligemma_edge.runtime.loading.loaded_model import LoadedModel
from paligemma_edge.runtime.manifest import Variant

PROMPT = "caption en"
QUESTION = Golden(
    image="golden.png",
    prompt=PROMPT,
    pixel_grid=(),
    prompt_ids=(),
    eos_ids=(1,),
    answer=OriginalAnswer(token_ids=(1,), text="", cut=False),
)
Answer = Callable[[tuple[int, ...]], tuple[int, ...]]


def _golden_with(**fields: object) -> bytes:
    return json.dumps({**json.loads(QUESTION.to_json()), **fields}).encode()


def _answer_with(**fields: object) -> bytes:
    return _golden_with(answer={**json.loads(QUESTION.to_json())["answer"], **fields})


@pytest.fixture
def image() -> bytes:
    pixels = np.random.default_rng(3).integers(0, 256, (70, 90, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def give_golden(
    shapes_copy: Path, shapes_model: PaliGemma, image: bytes
) -> Callable[[Answer], Path]:
    """Make the bundle's own answer, changed, its golden one."""
    said, loaded = shapes_model.generate(image, PROMPT, max_new_tokens=8), shapes_model._loaded
    pixels = pixel_grid(loaded.pipeline.read_images([image]).pixel_values[0])
    ids = loaded.encoder.encode(PROMPT, 1)

    def give(change: Answer) -> Path:
        tokens = change(said.token_ids)
        golden = dataclasses.replace(
            QUESTION,
            pixel_grid=pixels,
            prompt_ids=ids,
            answer=OriginalAnswer(
                token_ids=tokens, text="the original's", cut=said.finish_reason == "length"
            ),
        )
        files = {"golden.json": golden.to_json(), "golden.png": image}
        amend_bundle(Bundle.open(shapes_copy), files, lambda manifest: manifest)
        return shapes_copy

    return give


def test_a_bundle_that_answers_as_the_original_passes(
    give_golden: Callable[[Answer], Path],
) -> None:
    bundle = give_golden(lambda tokens: tokens)
    result = self_test(bundle, device="cpu", variant="cpu-fp32")
    assert result.passed
    assert result.question.answer is not None
    assert result.question.answer.agreement == result.question.answer.required == 1
    assert result.files == len(Bundle.open(bundle).manifest.files)
    (line,) = result.summary()
    assert line.startswith("passed: ")


def test_one_other_token_fails_and_both_answers_are_shown(
    give_golden: Callable[[Answer], Path],
) -> None:
    result = self_test(give_golden(lambda tokens: (*tokens[:-1], tokens[-1] ^ 1)))
    assert not result.passed
    answer = result.question.answer
    assert answer is not None
    assert answer.agreement == 1 - 1 / len(answer.original.token_ids)
    first, original, here = result.summary()
    assert first.startswith("FAILED: ")
    assert "the original's" in original
    assert repr(answer.text) in here


IMAGE_CHANGES: dict[str, dict[str, object]] = {
    **{name: {"resample": name} for name in ("nearest", "lanczos", "bilinear", "box", "hamming")},
    "scale": {"rescale_factor": 0.00393},
    "mean of red": {"mean": [0.505, 0.5, 0.5]},
    "mean of green": {"mean": [0.5, 0.49, 0.5]},
    "mean of blue": {"mean": [0.5, 0.5, 0.0]},
    "deviation of red": {"std": [0.505, 0.5, 0.5]},
    "deviation of green": {"std": [0.5, 0.49, 0.5]},
    "deviation of blue": {"std": [0.5, 0.5, 1.0]},
    "channels": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
}


@pytest.mark.parametrize("change", IMAGE_CHANGES)
def test_another_preprocessing_fails_before_the_original_was_asked(
    shapes_copy: Path, change: str
) -> None:
    """As export leaves a bundle."""
    _edit_manifest(shapes_copy, "image", IMAGE_CHANGES[change])
    result = self_test(shapes_copy, device="cpu")
    assert not result.passed
    first, second = result.summary()
    assert first.startswith("FAILED: ")
    assert "the image's pixel values are not the original's" in second


@pytest.mark.parametrize("change", IMAGE_CHANGES)
def test_another_preprocessing_fails_whatever_the_answer(
    give_golden: Callable[[Answer], Path], change: str
) -> None:
    bundle = give_golden(lambda tokens: tokens)
    _edit_manifest(bundle, "image", IMAGE_CHANGES[change])
    result = self_test(bundle, device="cpu")
    assert not result.passed
    assert "the image's pixel values are not the original's" in "\n".join(result.summary())


@pytest.mark.parametrize("size", [111, 113, 56, 224])
def test_another_size_is_none_of_the_graphs(
    give_golden: Callable[[Answer], Path], size: int
) -> None:
    bundle = give_golden(lambda tokens: tokens)
    _edit_manifest(bundle, "image", {"size": size})
    with pytest.raises(BundleError, match=r"'pixel_values' is .* the manifest says"):
        self_test(bundle, device="cpu")


@pytest.mark.parametrize("name", ["bos_id", "newline_id", "image_id", "first_loc_id"])
def test_another_id_is_none_of_the_tokenizer(shapes_copy: Path, name: str) -> None:
    ids = json.loads((shapes_copy / "manifest.json").read_text())["tokenizer"]
    for other in (ids[name] - 1, ids[name] + 1):
        _edit_manifest(shapes_copy, "tokenizer", {name: other})
        with pytest.raises((BundleError, TokenizerError)):
            self_test(shapes_copy, device="cpu")


def test_a_prompt_that_is_read_otherwise_fails(
    give_golden: Callable[[Answer], Path],
) -> None:
    bundle = Bundle.open(give_golden(lambda tokens: tokens))
    golden = Golden.read(bundle)
    other = dataclasses.replace(golden, prompt_ids=golden.prompt_ids[1:])
    amend_bundle(bundle, {"golden.json": other.to_json()}, lambda m: m)
    result = self_test(bundle.path, device="cpu")
    assert not result.passed
    assert f"the original's {golden.prompt_ids[1:]}" in "\n".join(result.summary())


ENDS = ([7], [1, 7], [1, 366], [366])  # none of them in the golden answer


@pytest.mark.parametrize("ends", ENDS, ids=str)
def test_other_ends_fail_where_no_answer_reaches_them(
    give_golden: Callable[[Answer], Path], ends: list[int]
) -> None:
    bundle = give_golden(lambda tokens: tokens)
    golden = Golden.read(Bundle.open(bundle))
    assert golden.answer is not None
    assert golden.answer.cut
    assert not set(ends) & set(golden.answer.token_ids)
    _edit_manifest(bundle, "tokenizer", {"eos_ids": ends})
    result = self_test(bundle, device="cpu")
    assert not result.passed
    assert result.question.misread == (
        f"the ids that end an answer are {tuple(ends)}, the original's (1,): "
        "see `eos_ids` in the manifest",
    )


@pytest.mark.parametrize("ends", ENDS, ids=str)
def test_other_ends_fail_before_the_original_was_asked(shapes_copy: Path, ends: list[int]) -> None:
    """As export leaves a bundle."""
    _edit_manifest(shapes_copy, "tokenizer", {"eos_ids": ends})
    result = self_test(shapes_copy, device="cpu")
    assert not result.passed
    assert "see `eos_ids` in the manifest" in "\n".join(result.summary())


def _forget_golden(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    for name in ("golden.json", "golden.png"):
        del manifest["files"][name]
        (bundle / name).unlink()
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def _edit_manifest(bundle: Path, part: str, fields: dict[str, Any]) -> None:
    data = json.loads((bundle / "manifest.json").read_text())
    data[part] |= fields
    (bundle / "manifest.json").write_text(json.dumps(data))


def test_an_early_difference_does_not_grow_into_others(
    give_golden: Callable[[Answer], Path], shapes_loaded: LoadedModel, image: bytes
) -> None:
    def after_another_start(tokens: tuple[int, ...]) -> tuple[int, ...]:
        """An original that starts with another token and goes on as the model then would."""
        pipeline = shapes_loaded.pipeline
        prompt = pipeline.encode(pipeline.read_images([image]), PROMPT)
        answer = [tokens[0] ^ 1]
        while len(answer) < 6:
            *_, best = (row.best for row in replay(shapes_loaded.engine, prompt, [*answer, 0]))
            answer.append(best)
        return tuple(answer)

    answer = self_test(give_golden(after_another_start), device="cpu").question.answer
    assert answer is not None
    assert answer.token_ids[0] != answer.original.token_ids[0]
    assert answer.agreement == 1 - 1 / 6


def test_a_bundle_whose_original_was_not_asked_reads_the_question(shapes_copy: Path) -> None:
    stages: list[str] = []
    result = self_test(shapes_copy, progress=lambda *stage: stages.append(stage[0]))
    assert result.passed
    assert result.question.answer is None
    files = Bundle.open(shapes_copy).manifest.files
    (summary,) = result.summary()
    assert summary.startswith(f"passed: the digests of {len(files)} files (15 MB) match; ")
    assert "cpu-fp32 can be opened here, reads image and prompt rightly; " in summary
    assert "no golden answer to compare (`paligemma-edge verify` makes one" in summary
    assert stages == ["comparing digests and opening the variant"]


def test_a_bundle_without_a_golden_question_has_its_digests(shapes_copy: Path) -> None:
    _forget_golden(shapes_copy)
    result = self_test(shapes_copy)
    assert result.passed
    (summary,) = result.summary()
    assert "cpu-fp32 can be opened here; there is no golden answer to compare" in summary


def test_without_a_golden_answer_digests_are_compared_all_the_same(shapes_copy: Path) -> None:
    path = shapes_copy / "cpu-fp32/mask_decoder.onnx.data"
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(BundleError, match=r"mask_decoder\.onnx\.data differs"):
        self_test(shapes_copy)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"[" * 9999,
        b'{"schema_version": "2.0", "prompt": "p", "answer": null}',
        _golden_with(eos_ids=[]),
        _golden_with(eos_ids=None),
        _golden_with(answer=[]),
        _golden_with(answer={}),
        _answer_with(token_ids=[]),
        _answer_with(token_ids="word"),
        _answer_with(token_ids=1),
        _golden_with(prompt_ids=None),
        _golden_with(prompt_ids=[10**400, "1e999"]),
        _answer_with(cut=0),
        _golden_with(pixel_grid=["a"]),
        _golden_with(pixel_grid=[10**400]),
    ],
)
def test_a_golden_file_of_another_form_is_one_line(text: bytes, shapes_copy: Path) -> None:
    bundle = amend_bundle(Bundle.open(shapes_copy), {"golden.json": text}, lambda m: m)
    with pytest.raises(BundleError, match=r"golden\.json holds no question") as caught:
        Golden.read(bundle)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("version", [None, "1.0", "3.0", 2, "20.0", []])
def test_a_golden_file_of_another_schema_is_told_as_such(
    version: object, shapes_copy: Path
) -> None:
    text = _golden_with(schema_version=version)
    bundle = amend_bundle(Bundle.open(shapes_copy), {"golden.json": text}, lambda m: m)
    with pytest.raises(BundleError, match=r"golden\.json has schema version .* reads '2\.0'"):
        Golden.read(bundle)


def test_a_golden_file_of_a_newer_minor_schema_is_read(shapes_copy: Path) -> None:
    text = _golden_with(schema_version="2.9", more=1)
    bundle = amend_bundle(Bundle.open(shapes_copy), {"golden.json": text}, lambda m: m)
    assert Golden.read(bundle) == QUESTION


def test_every_file_is_checked_not_only_those_that_run(
    give_golden: Callable[[Answer], Path],
) -> None:
    bundle = give_golden(lambda tokens: tokens)
    path = bundle / "golden.png"
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(BundleError, match=r"golden\.png differs"):
        self_test(bundle)


def test_each_file_is_hashed_once(
    give_golden: Callable[[Answer], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = give_golden(lambda tokens: tokens)
    hashed: list[str] = []
    digest = Bundle.digest

    def watched(self: Bundle, name: str, piece: int | None = None) -> str:
        hashed.append(name)
        return digest(self, name, piece)

    monkeypatch.setattr(Bundle, "digest", watched)
    self_test(bundle)
    assert sorted(hashed) == sorted(Bundle.open(bundle).manifest.files)


def test_threads_are_passed_on(give_golden: Callable[[Answer], Path]) -> None:
    with pytest.raises(OptionError, match="threads is 0"):
        self_test(give_golden(lambda tokens: tokens), threads=0)


def test_a_variant_that_is_not_there_is_reported(give_golden: Callable[[Answer], Path]) -> None:
    with pytest.raises(OptionError, match="cpu-int4"):
        self_test(give_golden(lambda tokens: tokens), variant="cpu-int4")


def test_a_golden_image_must_be_a_file_of_the_bundle(
    give_golden: Callable[[Answer], Path],
) -> None:
    bundle = Bundle.open(give_golden(lambda tokens: tokens))
    golden = dataclasses.replace(QUESTION, image="../secret.png")
    amend_bundle(bundle, {"golden.json": golden.to_json()}, lambda m: m)
    with pytest.raises(BundleError, match="lists no file"):
        self_test(bundle.path)


def test_replay_gives_a_row_for_each_token(shapes_model: PaliGemma, image: bytes) -> None:
    answer = shapes_model.generate(image, PROMPT, max_new_tokens=5)
    engine, pipeline = shapes_model._loaded.engine, shapes_model._loaded.pipeline
    prompt = pipeline.encode(pipeline.read_images([image]), PROMPT)
    rows = [row.whole.copy() for row in replay(engine, prompt, answer.token_ids)]
    assert len(rows) == len(answer.token_ids)
    (alone,) = (row.whole.copy() for row in replay(engine, prompt, [1]))
    assert np.array_equal(alone, rows[0])


@pytest.mark.parametrize(
    ("weights", "compute", "share"),
    [
        ("float32", "float32", 1.0),
        ("bfloat16", "float32", 1.0),
        ("float16", "float32", 1.0),
        ("float16", "float16", 0.75),
        ("int8", "float32", 0.75),
        ("int4", "float32", 0.5),
        ("int4", "float16", 0.5),
    ],
)
def test_float_weights_in_float32_must_agree_wholly(
    weights: Any,  # noqa: ANN401 - one of the manifest's literals
    compute: Any,  # noqa: ANN401
    share: float,
) -> None:
    variant = Variant(
        device="cpu",
        recipe="r",
        graphs={},
        weight_dtype=weights,
        compute_dtype=compute,
        memory_bytes=0,
        files=(),
    )
    assert required_agreement(variant) == share
    original = OriginalAnswer(token_ids=(1, 2, 3, 4), text="", cut=True)
    answer = GoldenAnswer(
        original=original, token_ids=(1, 2, 3, 5), text="", agreement=0.75, required=share
    )
    result = SelfTest(
        files=1,
        file_bytes=1,
        question=GoldenCheck(variant="v", golden=QUESTION, answer=answer),
    )
    assert result.passed == (share <= 0.75)
