"""The report names the stage that differs, and only a bundle that passes gets a golden answer."""

from __future__ import annotations

import dataclasses
import gc
import io
import json
import math
import os
import shutil
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from transformers import DynamicCache, GenerationConfig
from transformers.utils import logging

from paligemma_edge import PaliGemma
from paligemma_edge.export.cli.parity_table import parity_table
from paligemma_edge.export.exporter import export
from paligemma_edge.export.verify import verify as verify_module
from paligemma_edge.export.verify.parity import STAGES, ParityReport, StageParity, tolerance
from paligemma_edge.export.verify.reference import Reference, ReferenceTrace, trace_all
from paligemma_edge.export.verify.samples import Sample, default_samples, read_samples
from paligemma_edge.export.verify.verify import verify
from paligemma_edge.runtime.bundle.bundle import Bundle
from paligemma_edge.runtime.bundle.golden import Golden, pixel_grid
from paligemma_edge.runtime.bundle.writer import amend_bundle
from paligemma_edge.runtime.diagnostics.self_test import self_test
from paligemma_edge.runtime.errors import (
    BundleError,
    CheckpointError,
    ImageError,
    OptionError,
    OutputError,
)
from paligemma_edge.runtime.images import load as image_module
from paligemma_edge.runtime.manifest import Manifest, Variant

SAMPLES = default_samples()[:4:3]
MakeCheckpoint = Callable[..., Path]


@pytest.fixture(scope="module")
def known(shapes_checkpoint: Path) -> list[ReferenceTrace]:
    """The original's answer to the first sample, in three tokens."""
    return trace_all(shapes_checkpoint, SAMPLES[:1], 3)


@pytest.fixture
def known_original(known: list[ReferenceTrace], monkeypatch: pytest.MonkeyPatch) -> None:
    """One run of the original for all tests with the same sample."""
    monkeypatch.setattr(verify_module, "trace_all", lambda *_, **__: known)


@pytest.fixture(scope="module")
def reference(shapes_checkpoint: Path) -> Reference:
    return Reference.open(shapes_checkpoint)


def failures(report: ParityReport) -> list[str]:
    return [stage.stage for stage in report.stages if not stage.passed]


def damage(bundle: Path, name: str, change: Callable[[bytearray], None]) -> None:
    """Change a file and record its new digest, as an exporter with a fault would."""
    opened = Bundle.open(bundle)
    data = bytearray(opened.file(name).read_bytes())
    change(data)
    amend_bundle(opened, {name: bytes(data)}, lambda manifest: manifest)


def negate_weights(data: bytearray) -> None:
    """Flip the signs of a stretch of weights, whether they have two bytes or four."""
    middle = len(data) // 2 // 4 * 4
    for place in range(middle + 3, middle + 20_000, 4):
        data[place] ^= 0x80


def test_a_new_bundle_has_the_golden_question_as_the_original_reads_it(
    shapes_bundle: Path, known: list[ReferenceTrace]
) -> None:
    bundle = Bundle.open(shapes_bundle)
    golden = Golden.read(bundle)
    (image,) = SAMPLES[0].images
    assert isinstance(image, Image.Image)
    assert Image.open(bundle.file(golden.image)).tobytes() == image.tobytes()
    assert (golden.prompt, golden.answer) == (SAMPLES[0].prompt, None)
    assert golden.prompt_ids == known[0].ids
    assert golden.pixel_grid == pixel_grid(known[0].pixel_values[0])


def test_a_sound_bundle_passes_and_gets_the_golden_answer(
    shapes_copy: Path, shapes_checkpoint: Path, known: list[ReferenceTrace]
) -> None:
    stages: list[tuple[str, int, int]] = []
    report = verify(
        shapes_copy,
        shapes_checkpoint,
        samples=SAMPLES,
        max_new_tokens=5,
        progress=lambda *stage: stages.append(stage),
    )
    assert report.passed
    assert [stage.stage for stage in report.stages] == list(STAGES)
    assert report.samples == 2
    assert stages[0] == ("reading the original", 0, 1)
    asked = [(f"asking the {one}", n, 2) for one in ("original", "bundle") for n in (0, 1)]
    assert stages[1:] == asked

    bundle = Bundle.open(shapes_copy)
    bundle.verify(bundle.manifest.files)
    assert ParityReport.from_json(bundle.file("parity/cpu-fp32.json").read_bytes()) == report
    golden = Golden.read(bundle)
    assert (golden.image, golden.prompt) == ("golden.png", "caption en")
    assert golden.answer is not None
    assert golden.answer.token_ids[:3] == known[0].tokens
    assert golden.answer.text.startswith(known[0].text)
    (original,) = SAMPLES[0].images
    assert isinstance(original, Image.Image)
    assert Image.open(bundle.file("golden.png")).tobytes() == original.tobytes()
    assert self_test(shapes_copy).passed


@pytest.mark.usefixtures("known_original")
@pytest.mark.parametrize(
    ("graph", "stage"),
    [("vision_encoder", "vision"), ("projector", "projector"), ("decoder", "first logits")],
)
def test_a_damaged_weight_fails_at_its_stage(
    graph: str, stage: str, shapes_copy: Path, shapes_checkpoint: Path
) -> None:
    damage(shapes_copy, f"cpu-fp32/{graph}.onnx.data", negate_weights)
    report = verify(shapes_copy, shapes_checkpoint, samples=SAMPLES[:1], max_new_tokens=3)
    assert failures(report)[0] == stage
    assert not report.passed
    assert Golden.read(Bundle.open(shapes_copy)).answer is None
    assert json.loads((shapes_copy / "parity/cpu-fp32.json").read_bytes())["passed"] is False


@pytest.mark.usefixtures("known_original")
def test_a_nan_weight_is_an_infinite_error(shapes_copy: Path, shapes_checkpoint: Path) -> None:
    def fill(data: bytearray) -> None:
        data[:] = b"\xff" * len(data)

    damage(shapes_copy, "cpu-fp32/projector.onnx.data", fill)
    report = verify(shapes_copy, shapes_checkpoint, samples=SAMPLES[:1], max_new_tokens=3)
    assert failures(report) == ["projector", "first logits", "step logits", "answer"]
    assert math.isinf(report.stages[STAGES.index("projector")].relative)
    assert ParityReport.from_json(report.to_json()) == report


@pytest.mark.usefixtures("known_original")
def test_another_filter_fails_at_the_pixels(shapes_copy: Path, shapes_checkpoint: Path) -> None:
    def bilinear(manifest: Manifest) -> Manifest:
        image = dataclasses.replace(manifest.image, resample="bilinear")
        return dataclasses.replace(manifest, image=image)

    amend_bundle(Bundle.open(shapes_copy), {}, bilinear)
    report = verify(shapes_copy, shapes_checkpoint, samples=SAMPLES[:1], max_new_tokens=3)
    assert failures(report)[0] == "pixels"


def test_another_models_bundle_differs_without_a_crash(
    shapes_copy: Path, make_checkpoint: MakeCheckpoint
) -> None:
    report = verify(shapes_copy, make_checkpoint(), samples=SAMPLES[:1], max_new_tokens=2)
    assert failures(report)[:2] == ["pixels", "vision"]


def test_a_wrong_variant_fails_before_the_original_is_loaded(
    shapes_copy: Path, shapes_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify_module, "trace_all", None)
    with pytest.raises(OptionError, match="cpu-fp32"):
        verify(shapes_copy, shapes_checkpoint, variant="cpu-int3")
    with pytest.raises(CheckpointError, match="is a bundle, which was exported already"):
        verify(shapes_copy, shapes_copy)


def test_options_and_damage_fail_before_the_original_is_loaded(
    shapes_copy: Path, shapes_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify_module, "trace_all", None)
    with pytest.raises(OptionError, match="max_new_tokens is 0"):
        verify(shapes_copy, shapes_checkpoint, max_new_tokens=0)
    weights = shapes_copy / "cpu-fp32" / "decoder.onnx.data"
    data = bytearray(weights.read_bytes())
    data[1000] ^= 1
    weights.write_bytes(data)
    with pytest.raises(BundleError, match=r"decoder\.onnx\.data differs from its sha256"):
        verify(shapes_copy, shapes_checkpoint)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(OutputError, match="cannot be written"):
        verify(shapes_copy, shapes_checkpoint)


def images_of_every_kind(folder: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)).resize((90, 60))
    alpha = Image.fromarray(np.linspace(0, 255, 60 * 90).reshape(60, 90).astype(np.uint8))
    clear, palette = photo.copy(), photo.quantize(16)
    clear.putalpha(alpha)
    for turn in (3, 6, 7):
        exif = Image.Exif()
        exif[0x0112] = turn
        photo.save(folder / f"turned-{turn}.jpg", exif=exif)
    photo.convert("CMYK").save(folder / "cmyk.jpg")
    photo.convert("L").save(folder / "grey.png")
    clear.save(folder / "rgba.png")
    palette.save(folder / "palette.png")
    palette.save(folder / "clear-palette.png", transparency=3)
    return sorted(folder.iterdir())


def test_every_kind_of_file_is_read_as_the_original_reads_it(
    tmp_path: Path, shapes_copy: Path, shapes_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    files = images_of_every_kind(folder)
    samples = [Sample((path,), "caption en") for path in files]
    report = verify(shapes_copy, shapes_checkpoint, samples=samples, max_new_tokens=1)
    assert (report.stages[0].stage, report.stages[0].absolute) == ("pixels", 0)
    # An error of our reader must be seen, so the original may not use it.
    monkeypatch.setattr(image_module, "_TURNS", {})
    turned = [sample for sample in samples if "turned-6" in str(sample.images[0])]
    report = verify(shapes_copy, shapes_checkpoint, samples=turned, max_new_tokens=1)
    assert failures(report)[0] == "pixels"


def test_markers_and_a_bos_before_a_prompt_are_not_doubled(reference: Reference) -> None:
    image = SAMPLES[0].images[0]
    _, plain = reference.inputs(Sample((image,), "detect star"))
    for prefix in ("<image>", "<image><bos>", "<bos>"):
        assert reference.inputs(Sample((image,), f"{prefix}detect star"))[1] == plain


def test_the_original_reads_every_kind_of_input_the_same_way(reference: Reference) -> None:
    (image,) = SAMPLES[0].images
    assert isinstance(image, Image.Image)
    file = io.BytesIO()
    image.save(file, "PNG")
    wanted, _ = reference.inputs(SAMPLES[0])
    for source in (np.asarray(image), file.getvalue()):
        np.testing.assert_array_equal(reference.inputs(Sample((source,), "x"))[0], wanted)


def test_the_arrays_of_a_trace_are_memory_mapped(shapes_checkpoint: Path, tmp_path: Path) -> None:
    (here,) = trace_all(shapes_checkpoint, SAMPLES[:1], 2)
    (there,) = trace_all(shapes_checkpoint, SAMPLES[:1], 2, spill=tmp_path)
    for name in ("pixel_values", "last_hidden_state", "image_features", "logits"):
        assert isinstance(getattr(there, name), np.memmap)
        # Two runs of torch: the last bits may differ.
        np.testing.assert_allclose(getattr(there, name), getattr(here, name), rtol=1e-4, atol=1e-4)
    assert (there.ids, there.tokens, there.text) == (here.ids, here.tokens, here.text)


def test_a_checkpoint_without_its_tokenizer(
    make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    folder = make_checkpoint()
    for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(CheckpointError, match="transformers cannot load") as caught:
        Reference.open(folder)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_without_the_settings_of_its_tokenizer(
    make_checkpoint: MakeCheckpoint,
) -> None:
    folder = make_checkpoint()
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"finds no <bos> .*put the tokenizer_config\.json"):
        Reference.open(folder)


def test_several_images_leave_the_golden_question_alone(
    shapes_copy: Path, shapes_checkpoint: Path
) -> None:
    before = Golden.read(Bundle.open(shapes_copy))
    several = Sample((SAMPLES[0].images[0], SAMPLES[1].images[0]), "caption en")
    report = verify(shapes_copy, shapes_checkpoint, samples=[several], max_new_tokens=1)
    assert report.passed
    assert report.steps == 0
    assert report.stages[STAGES.index("step logits")].worst == ""
    assert Golden.read(Bundle.open(shapes_copy)) == before


def test_the_original_is_dropped_and_transformers_is_left_as_it_was(
    shapes_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    models: list[weakref.ref[Any]] = []
    load = Reference.open

    def watched(checkpoint: Path, *options: Any) -> Reference:  # noqa: ANN401
        reference = load(checkpoint, *options)
        models.append(weakref.ref(reference.model))
        return reference

    monkeypatch.setattr(Reference, "open", watched)
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    (trace,) = trace_all(shapes_checkpoint, SAMPLES[:1], 2)
    gc.collect()
    assert models[0]() is None
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    assert capsys.readouterr() == ("", "")
    assert trace.logits.shape == (len(trace.tokens), 2176)


def test_nothing_of_the_original_is_printed_over_the_table(
    known: list[ReferenceTrace], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither while it is loaded nor while it answers; ours is heard again afterwards."""

    class Loud:
        def trace(self, *_: object) -> ReferenceTrace:
            logging.get_logger("transformers.models.paligemma").warning("bidirectional")
            warnings.warn("the processor is slow", stacklevel=1)
            return known[0]

    def load(*_: object) -> Loud:
        logging.get_logger("transformers.modeling_utils").warning("unused weights")
        warnings.warn("no CUDA", UserWarning, stacklevel=2)
        return Loud()

    monkeypatch.setattr(Reference, "open", load)
    assert trace_all("x", SAMPLES[:1], 2) == known
    assert capsys.readouterr() == ("", "")
    with pytest.warns(UserWarning, match="heard"):
        warnings.warn("heard", stacklevel=1)


def test_the_reference_answers_as_transformers_generate(reference: Reference) -> None:
    trace = reference.trace(SAMPLES[1], 6)
    pixels, ids = reference.inputs(SAMPLES[1])
    output = reference.model.generate(
        input_ids=torch.tensor([ids]),
        token_type_ids=torch.zeros((1, len(ids)), dtype=torch.int64),
        attention_mask=torch.ones((1, len(ids)), dtype=torch.int64),
        pixel_values=torch.from_numpy(pixels),
        max_new_tokens=6,
        do_sample=False,
        suppress_tokens=list(range(2152, 2176)),
    )
    assert tuple(output[0, len(ids) :].tolist()) == trace.tokens


def test_the_report_survives_json() -> None:
    stages = tuple(
        StageParity(stage=name, absolute=1.5, relative=math.inf, tolerance=0.1, worst="détecter")
        for name in STAGES
    )
    report = ParityReport(variant="v", samples=1, steps=2, versions={"torch": "2"}, stages=stages)
    assert "Infinity" not in report.to_json()
    assert ParityReport.from_json(report.to_json()) == report


def test_the_table_names_the_stage_that_differs_and_its_prompt() -> None:
    good = StageParity(stage="pixels", absolute=0.0, relative=0.0, tolerance=1e-4, worst="a")
    bad = StageParity(stage="vision", absolute=3.0, relative=0.5, tolerance=1e-4, worst="[detect]")
    report = ParityReport(variant="v", samples=1, steps=2, versions={}, stages=(good, bad))
    output = io.StringIO()
    Console(width=120, file=output).print(parity_table(report))
    text = output.getvalue()
    assert "DIFFERS" in text
    assert "5.00e-01" in text
    assert "[detect]" in text


def test_tolerances_depend_on_what_a_variant_computes_with() -> None:
    def variant(weights: Any, compute: Any) -> Variant:  # noqa: ANN401 - literals
        return Variant(
            device="cpu",
            recipe="r",
            graphs={},
            weight_dtype=weights,
            compute_dtype=compute,
            memory_bytes=0,
            files=(),
        )

    for weights in ("float32", "bfloat16", "float16"):
        limits = [tolerance(stage, variant(weights, "float32")) for stage in STAGES]
        assert limits == [1e-4, 0, 0, 1e-4, 1e-4, 1e-4, 1e-4, 0]
    assert tolerance("vision", variant("float16", "float16")) > 1e-4
    assert 0 < tolerance("answer", variant("int4", "float32")) < 1
    assert tolerance("token ids", variant("int4", "float16")) == 0


def test_the_generated_samples_are_the_same_every_time_and_none_is_square() -> None:
    first, again = default_samples(), default_samples()
    assert len(first) == 9
    assert len({sample.prompt for sample in first}) == 3
    for a, b in zip(first, again, strict=True):
        (image,), (copy,) = a.images, b.images
        assert isinstance(image, Image.Image)
        assert isinstance(copy, Image.Image)
        assert image.tobytes() == copy.tobytes()
        assert image.width != image.height
        assert np.asarray(image).std() > 30


def test_samples_are_read_from_a_folder(tmp_path: Path) -> None:
    questions = [{"prompt": "caption en", "text": "x"}, {"prompt": "detect cat", "objects": []}]
    entries = [{"image": "a.png", "masks": "m.png", "questions": questions}]
    (tmp_path / "prompts.json").write_text(json.dumps(entries))
    assert read_samples(tmp_path) == [
        Sample((tmp_path / "a.png",), "caption en"),
        Sample((tmp_path / "a.png",), "detect cat"),
    ]


@pytest.mark.parametrize(
    "text", [None, "", "{}", "[]", "[1]", '[{"image": 1}]', '[{"image": "a"}]', "[" * 9999]
)
def test_a_folder_without_samples(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "prompts.json").write_text(text)
    with pytest.raises(OptionError, match="wanted") as caught:
        read_samples(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_missing_image_is_an_image_error(shapes_checkpoint: Path) -> None:
    sample = Sample((Path("nowhere.png"),), "caption en")
    with pytest.raises(ImageError, match="nowhere"):
        trace_all(shapes_checkpoint, [sample], 1)


def test_a_prefix_is_bidirectional_in_the_original_too(reference: Reference) -> None:
    keys = []
    for prompt in ("detect red circle", "detect red square"):
        cache = DynamicCache()
        reference.prefill(*reference.inputs(Sample(SAMPLES[0].images, prompt)), cache)
        layer: Any = cache.layers[1]
        keys.append(layer.keys[0, :, 0])
    assert (keys[0] - keys[1]).abs().max() > 1e-4


@pytest.fixture(scope="module")
def ended_by_another_token(
    shapes_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, tuple[int, ...]]:
    """A checkpoint whose answer ends with a second end token, its bundle, and the answer."""
    folder = tmp_path_factory.mktemp("ends")
    checkpoint = Path(shutil.copytree(shapes_checkpoint, folder / "checkpoint"))
    (free,) = trace_all(checkpoint, SAMPLES[:1], 8)
    ends = [1, next(token for token in free.tokens[2:] if token not in free.tokens[:2])]
    (checkpoint / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    bundle = folder / "a.bundle"
    manifest = export(checkpoint, bundle)
    assert manifest.tokenizer.eos_ids == tuple(sorted(ends))
    return checkpoint, bundle, free.tokens[: free.tokens.index(ends[1]) + 1]


def test_a_second_end_token_ends_answers_as_in_transformers_generate(
    ended_by_another_token: tuple[Path, Path, tuple[int, ...]],
) -> None:
    checkpoint, bundle, answer = ended_by_another_token
    reference = Reference.open(checkpoint)
    trace = reference.trace(SAMPLES[0], 8)
    assert (trace.tokens, trace.cut) == (answer, False)
    pixels, ids = reference.inputs(SAMPLES[0])
    output = reference.model.generate(
        input_ids=torch.tensor([ids]),
        token_type_ids=torch.zeros((1, len(ids)), dtype=torch.int64),
        attention_mask=torch.ones((1, len(ids)), dtype=torch.int64),
        pixel_values=torch.from_numpy(pixels),
        max_new_tokens=8,
        do_sample=False,
        suppress_tokens=list(range(2152, 2176)),
    )
    assert tuple(output[0, len(ids) :].tolist()) == answer
    (image,) = SAMPLES[0].images
    generation = PaliGemma(bundle, device="cpu").generate(image, SAMPLES[0].prompt)
    assert (generation.token_ids, generation.finish_reason) == (answer, "stop")
    report = verify(bundle, checkpoint, samples=SAMPLES[:1], max_new_tokens=8)
    assert report.passed
    golden = Golden.read(Bundle.open(bundle)).answer
    assert golden is not None
    assert golden.text == generation.text
    assert self_test(bundle).passed


def test_a_lost_and_a_foreign_end_token_are_noticed(
    ended_by_another_token: tuple[Path, Path, tuple[int, ...]], tmp_path: Path
) -> None:
    checkpoint, bundle, answer = ended_by_another_token
    for name, ends in (("lost", (1,)), ("foreign", tuple(sorted({1, answer[0], answer[-1]})))):
        copy = Path(shutil.copytree(bundle, tmp_path / name))

        def change(manifest: Manifest, ends: tuple[int, ...] = ends) -> Manifest:
            tokenizer = dataclasses.replace(manifest.tokenizer, eos_ids=ends)
            return dataclasses.replace(manifest, tokenizer=tokenizer)

        amend_bundle(Bundle.open(copy), {}, change)
        report = verify(copy, checkpoint, samples=SAMPLES[:1], max_new_tokens=8)
        assert failures(report) == ["end ids", "answer"], name


@pytest.mark.parametrize("ends", [(7,), (1,), (1, 7, 366)], ids=str)
def test_other_ends_fail_where_no_answer_reaches_them(
    ends: tuple[int, ...], shapes_checkpoint: Path, tmp_path: Path
) -> None:
    checkpoint = Path(shutil.copytree(shapes_checkpoint, tmp_path / "checkpoint"))
    (checkpoint / "generation_config.json").write_text(json.dumps({"eos_token_id": [366, 1]}))
    bundle = tmp_path / "a.bundle"
    manifest = export(checkpoint, bundle)
    original = GenerationConfig.from_pretrained(checkpoint).eos_token_id
    assert isinstance(original, list)
    assert list(Golden.read(Bundle.open(bundle)).eos_ids) == sorted(original)
    assert self_test(bundle).passed

    tokenizer = dataclasses.replace(manifest.tokenizer, eos_ids=ends)
    changed = amend_bundle(
        Bundle.open(bundle), {}, lambda m: dataclasses.replace(m, tokenizer=tokenizer)
    )
    assert not self_test(bundle).passed
    report = verify(bundle, checkpoint, samples=SAMPLES[:1], max_new_tokens=2)
    assert failures(report) == ["end ids"]
    assert Golden.read(changed).answer is None
    assert not self_test(bundle).passed
