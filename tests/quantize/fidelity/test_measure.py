"""The figures of a report: exact for a copy, and otherwise those of a second computation."""

from __future__ import annotations

import dataclasses
import io
import itertools
import shutil
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from paligemma_edge import Generation, PaliGemma
from paligemma_edge.quantize.fidelity import measure as fidelity_measure
from paligemma_edge.quantize.fidelity.figures import divergence, logit_error
from paligemma_edge.quantize.fidelity.measure import measure_fidelity
from paligemma_edge.quantize.fidelity.overlap import EvalObject, box_iou, mask_iou, mean_overlap
from paligemma_edge.quantize.fidelity.plot import plot_layers, report_files
from paligemma_edge.quantize.fidelity.questions import Question, sample_questions
from paligemma_edge.quantize.fidelity.report_table import render_reports
from paligemma_edge.runtime.bundle.bundle import Bundle
from paligemma_edge.runtime.bundle.fidelity import Fidelity, LayerError, plot_name, report_name
from paligemma_edge.runtime.bundle.writer import amend_bundle
from paligemma_edge.runtime.engine.replay import replay
from paligemma_edge.runtime.errors import ImageError, NonFiniteLogitsError, OptionError, PromptError
from paligemma_edge.runtime.loading.loaded_model import LoadedModel, load_model
from paligemma_edge.runtime.manifest import Manifest
from paligemma_edge.runtime.results.build import decoded_masks
from paligemma_edge.runtime.results.mask import paste_mask
from paligemma_edge.runtime.text.parse_answer import ParsedObject
from samples.shapes import mask_decoder, scoring
from samples.shapes.scenes import Scene, draw
from samples.shapes.tasks import ShapesQuestion, make_question, possible_tasks
from samples.shapes.write_images import FIRST

FEW = 3  # images
LIMIT = 60
QUESTIONS = [q for q in sample_questions() if int(q.image.stem) < FEW]
LAYERS = (
    LayerError(graph="vision_encoder", layer="layers.0.fc1", scheme="int8", relative_error=0.004),
    LayerError(graph="decoder", layer="layers.0.qkv", scheme="int4", relative_error=0.05),
    LayerError(graph="decoder", layer="layers.0.down", scheme="none", relative_error=0.0),
    LayerError(graph="decoder", layer="lm_head", scheme="int8", relative_error=None),
)
Rows = NDArray[np.float32]


def add_variant(bundle: Path, name: str, change: Callable[[NDArray[np.uint16]], None]) -> None:
    """A copy of the lossless variant whose decoder's weights, pairs of bytes, are changed."""
    opened = Bundle.open(bundle)
    lossless = opened.manifest.variants["cpu-fp32"]
    files = {file.replace("cpu-fp32", name): opened.file(file) for file in lossless.files}
    contents = {file: path.read_bytes() for file, path in files.items()}
    weights = np.frombuffer(contents[f"{name}/decoder.onnx.data"], np.uint16).copy()
    change(weights)
    contents[f"{name}/decoder.onnx.data"] = weights.tobytes()
    variant = dataclasses.replace(
        lossless,
        recipe="noise",
        graphs={g: file.replace("cpu-fp32", name) for g, file in lossless.graphs.items()},
        files=tuple(files),
    )

    def changes(manifest: Manifest) -> Manifest:
        return dataclasses.replace(manifest, variants={**manifest.variants, name: variant})

    amend_bundle(opened, contents, changes)


def add_noise(weights: NDArray[np.uint16]) -> None:
    """A bfloat16 weight keeps its sign, its exponent and one of its seven other bits."""
    weights ^= np.random.default_rng(0).integers(0, 64, weights.shape, np.uint16)


def put_nan(weights: NDArray[np.uint16]) -> None:
    weights[:] = 0x7FC0


@pytest.fixture(scope="module")
def bundle(shapes_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = Path(shutil.copytree(shapes_bundle, tmp_path_factory.mktemp("noise") / "copy.bundle"))
    add_variant(copy, "cpu-noise", add_noise)
    add_variant(copy, "cpu-nan", put_nan)
    return copy


@pytest.fixture(scope="module")
def noisy(bundle: Path) -> Fidelity:
    return measure_fidelity(
        bundle,
        "cpu-noise",
        "cpu-fp32",
        QUESTIONS,
        max_new_tokens=LIMIT,
        layer_errors=LAYERS,
        notes=["a note"],
    )


@pytest.fixture(scope="module")
def models(bundle: Path) -> tuple[PaliGemma, PaliGemma]:
    return PaliGemma(bundle, variant="cpu-fp32"), PaliGemma(bundle, variant="cpu-noise")


@pytest.fixture(scope="module")
def answers(models: tuple[PaliGemma, PaliGemma]) -> list[tuple[Generation, Generation]]:
    """What the facade says, the reference's answer and the variant's."""
    one, two = models

    def answer(model: PaliGemma, question: Question) -> Generation:
        return model.generate(question.image, question.prompt, max_new_tokens=LIMIT)

    return [(answer(one, q), answer(two, q)) for q in QUESTIONS]


def rows(model: PaliGemma, question: Question, tokens: Sequence[int]) -> Rows:
    image = model._loaded.pipeline.read_images([question.image])
    prompt = model._loaded.pipeline.encode(image, question.prompt)
    return np.stack(
        [row.answer_logits.copy() for row in replay(model._loaded.engine, prompt, tokens)]
    )


def exam() -> list[tuple[Scene, ShapesQuestion]]:
    """The questions of the first sample images, from the generator that drew them."""
    questions = []
    for place in range(FEW):
        image, rng = draw("held_out", FIRST + place), np.random.default_rng([3, FIRST + place])
        questions += [(image, make_question(image, task, rng)) for task in possible_tasks(image)]
    return questions


def test_a_variant_beside_itself_is_exact(bundle: Path) -> None:
    stages: list[tuple[str, int, int]] = []
    report = measure_fidelity(
        bundle, "cpu-fp32", "cpu-fp32", QUESTIONS, progress=lambda *stage: stages.append(stage)
    )
    shares = (report.forced_agreement, report.free_agreement, report.same_answers)
    assert (*shares, report.box_iou, report.mask_iou) == (1.0,) * 5
    for spread in (report.divergence, report.logit_error):
        assert (spread.mean, spread.p99, spread.largest) == (0.0, 0.0, 0.0)
    assert report.questions == len(QUESTIONS)
    assert all(s.reference == s.variant for s in report.tasks.values())
    assert (report.recipe, report.layers, report.notes) == ("fp32", (), ())
    assert report.memory is not None
    assert len(stages) == 2 * len(QUESTIONS) + 1
    assert stages[0] == ("comparing answers: cpu-fp32", 0, len(QUESTIONS))


def test_the_agreement_of_tokens_is_counted(
    noisy: Fidelity,
    models: tuple[PaliGemma, PaliGemma],
    answers: list[tuple[Generation, Generation]],
) -> None:
    tokens = [(a.token_ids, b.token_ids) for a, b in answers]
    assert noisy.tokens == sum(len(a) for a, _ in tokens)
    same = [x == y for a, b in tokens for x, y in itertools.zip_longest(a, b)]
    assert 0 < noisy.free_agreement < 1
    assert noisy.free_agreement == pytest.approx(sum(same) / len(same))
    assert noisy.same_answers == pytest.approx(np.mean([a == b for a, b in tokens]))
    assert 0 < noisy.same_answers < 1
    forced = [
        token == expected
        for question, (a, _) in zip(QUESTIONS, answers, strict=True)
        for token, expected in zip(
            rows(models[1], question, a.token_ids).argmax(axis=1), a.token_ids, strict=True
        )
    ]
    assert noisy.free_agreement < noisy.forced_agreement < 1
    assert noisy.forced_agreement == pytest.approx(np.mean(forced))


def test_the_divergence_is_that_of_torch(
    noisy: Fidelity,
    models: tuple[PaliGemma, PaliGemma],
    answers: list[tuple[Generation, Generation]],
) -> None:
    divergences: list[float] = []
    errors: list[float] = []
    for question, (answer, _) in zip(QUESTIONS, answers, strict=True):
        one, two = (
            torch.from_numpy(rows(model, question, answer.token_ids)).double() for model in models
        )
        p, q = one.log_softmax(-1), two.log_softmax(-1)
        kl = torch.nn.functional.kl_div(q, p, reduction="none", log_target=True)
        divergences += kl.sum(-1).tolist()
        errors += ((one - two).abs().amax(-1) / one.abs().amax(-1)).tolist()
    assert noisy.divergence.mean == pytest.approx(np.mean(divergences))
    assert noisy.divergence.p99 == pytest.approx(np.quantile(divergences, 0.99))
    assert noisy.divergence.largest == pytest.approx(max(divergences))
    assert noisy.divergence.mean > 1e-5
    assert noisy.logit_error.mean == pytest.approx(np.mean(errors))
    assert noisy.logit_error.largest == pytest.approx(max(errors))


def test_scores_against_the_truth_are_those_of_the_samples(
    noisy: Fidelity, answers: list[tuple[Generation, Generation]], shapes_checkpoint: Path
) -> None:
    decode = mask_decoder.load(shapes_checkpoint / "vae-oid.npz")
    expected: dict[str, list[tuple[float, float]]] = {}
    for (image, question), pair in zip(exam(), answers, strict=True):
        assert question.prompt == pair[0].prompt
        answers_read = (scoring.parse_answer(question, answer.text, decode) for answer in pair)
        one, two = (scoring.score(question, image, answer) for answer in answers_read)
        expected.setdefault(question.task, []).append((one, two))
    assert list(noisy.tasks) == list(expected)
    for task, scores in expected.items():
        reference, variant = np.mean(scores, axis=0)
        assert noisy.tasks[task].questions == len(scores)
        assert noisy.tasks[task].reference == pytest.approx(reference, abs=1e-3)
        assert noisy.tasks[task].variant == pytest.approx(variant, abs=1e-3)


def test_boxes_and_masks_are_compared_with_the_reference(
    noisy: Fidelity,
    models: tuple[PaliGemma, PaliGemma],
    answers: list[tuple[Generation, Generation]],
) -> None:
    boxes, masks = [], []
    for (_, question), (a, b) in zip(exam(), answers, strict=True):
        if question.task in ("detect", "segment"):
            boxes.append(_by_hand(a, b, models))
        if question.task == "segment":
            masks.append(_by_hand(a, b, models, masked=True))
    assert noisy.box_iou == pytest.approx(np.mean(boxes))
    assert noisy.mask_iou == pytest.approx(np.mean(masks))
    assert noisy.box_iou is not None
    assert 0 < noisy.box_iou < 1


def _masks(model: PaliGemma, objects: Sequence[ParsedObject], side: int) -> list[Any]:
    decoded = decoded_masks(objects, model._loaded.engine.decode_masks)
    return [
        None if mask is None else paste_mask(mask, one.box, side, side)
        for one, mask in zip(objects, decoded, strict=True)
    ]


def _by_hand(
    a: Generation, b: Generation, models: tuple[PaliGemma, PaliGemma], *, masked: bool = False
) -> float:
    """The best of all ways to pair objects of one label; few objects, so all are tried."""
    side = 112
    found = [generation.answer.objects for generation in (a, b)]
    soft: Any = [_masks(model, objects, side) for model, objects in zip(models, found, strict=True)]
    pairs = np.zeros((len(found[0]), max(map(len, found))))
    for i, j in itertools.product(range(len(found[0])), range(len(found[1]))):
        one, two = found[0][i], found[1][j]
        if one.label == two.label:
            pairs[i, j] = (
                scoring.mask_iou(soft[0][i] > 0.5, soft[1][j] > 0.5)
                if masked
                else scoring.box_iou(dataclasses.astuple(one.box), dataclasses.astuple(two.box))
            )
    ways = itertools.permutations(range(pairs.shape[1]), len(pairs))
    best = max(sum(pairs[i, j] for i, j in enumerate(way)) for way in ways)
    return float(best) / max(map(len, found))


def test_the_report_holds_what_it_was_given(noisy: Fidelity, bundle: Path) -> None:
    assert (noisy.variant, noisy.reference, noisy.recipe) == ("cpu-noise", "cpu-fp32", "noise")
    assert (noisy.layers, noisy.notes) == (LAYERS, ("a note",))
    files = (bundle / "cpu-noise").iterdir()
    assert noisy.disk_bytes == sum(file.stat().st_size for file in files)
    assert noisy.memory is not None
    assert noisy.memory.peak_bytes > noisy.disk_bytes
    assert Fidelity.from_json(noisy.to_json()) == noisy


def test_two_variants_are_never_open_at_once(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[weakref.ref[LoadedModel]] = []

    def open_alone(bundle: Path, *, variant: str) -> LoadedModel:
        assert not any(reference() for reference in opened)
        model = load_model(bundle, variant=variant)
        opened.append(weakref.ref(model))
        return model

    def measured(*_: object) -> None:
        assert not any(reference() for reference in opened)

    monkeypatch.setattr(fidelity_measure, "load_model", open_alone)
    monkeypatch.setattr(fidelity_measure, "measure_memory", measured)
    report = measure_fidelity(bundle, "cpu-noise", "cpu-fp32", QUESTIONS[:1], max_new_tokens=2)
    assert len(opened) == 2
    assert report.memory is None


@pytest.mark.parametrize(
    ("variant", "reference"), [("cpu-nan", "cpu-fp32"), ("cpu-fp32", "cpu-nan")]
)
def test_logits_with_nan_or_inf_are_an_error(variant: str, reference: str, bundle: Path) -> None:
    with pytest.raises(NonFiniteLogitsError, match=r"cpu-nan produced.*'caption en' about 00\.png"):
        measure_fidelity(bundle, variant, reference, QUESTIONS[:1])


def test_what_cannot_be_asked_is_refused(bundle: Path, tmp_path: Path) -> None:
    one = QUESTIONS[:1]
    with pytest.raises(OptionError, match="no question"):
        measure_fidelity(bundle, "cpu-noise", "cpu-fp32", [])
    with pytest.raises(OptionError, match="'cpu-none'"):
        measure_fidelity(bundle, "cpu-none", "cpu-fp32", one)
    with pytest.raises(OptionError, match="max_new_tokens"):
        measure_fidelity(bundle, "cpu-noise", "cpu-fp32", one, max_new_tokens=0)
    lost = dataclasses.replace(one[0], image=tmp_path / "lost.png")
    with pytest.raises(ImageError, match="lost"):
        measure_fidelity(bundle, "cpu-noise", "cpu-fp32", [lost])
    endless = dataclasses.replace(one[0], prompt="a cat " * 20_000)
    with pytest.raises(PromptError):
        measure_fidelity(bundle, "cpu-noise", "cpu-fp32", [endless])


def test_a_question_without_truth_or_objects_leaves_them_out(bundle: Path) -> None:
    plain = dataclasses.replace(QUESTIONS[0], text=None)
    report = measure_fidelity(bundle, "cpu-noise", "cpu-fp32", [plain], max_new_tokens=4)
    assert (report.tasks, report.box_iou, report.mask_iou) == ({}, None, None)


def test_overlap_matches_labels_and_counts_what_is_left() -> None:
    def at(x: float, label: str = "a") -> EvalObject:
        mask = np.zeros((4, 40), np.bool_)
        mask[:, int(x) : int(x) + 4] = True
        return EvalObject(label, (0, x, 4, x + 4), mask)

    for iou in (box_iou, mask_iou):
        assert iou(at(0), at(2)) == pytest.approx(1 / 3)
        assert mean_overlap([at(0), at(9)], [at(9), at(0)], iou) == 1
        assert mean_overlap([at(0)], [at(0, "b")], iou) == 0
        assert mean_overlap([at(0)], [at(0), at(9)], iou) == 0.5
        assert mean_overlap([at(0), at(9)], [], iou) == 0
        assert mean_overlap([], [], iou) == 1
        # The best pair goes first, though another pairing would have two partners.
        assert mean_overlap([at(0), at(2)], [at(2), at(20)], iou) == 0.5
    empty = EvalObject("a", (1, 1, 1, 1), np.zeros((4, 4), np.bool_))
    assert box_iou(empty, empty) == mask_iou(empty, empty) == 1
    assert mask_iou(EvalObject("a", (0, 0, 1, 1), None), empty) == 0


def test_the_divergence_is_exact_where_it_is_known() -> None:
    one = np.log(np.array([0.5, 0.25, 0.25], np.float32)) + np.float32(100)
    two = np.log(np.array([0.25, 0.5, 0.25], np.float32))
    assert divergence(one, two) == pytest.approx(0.25 * np.log(2), rel=1e-5)
    assert divergence(one, one) == 0
    far = np.array([0, -1e30], np.float32)
    assert divergence(far, -far) == pytest.approx(1e30)
    assert logit_error(np.array([1, -4], np.float32), np.array([2, -4], np.float32)) == 0.25


def test_the_plot_is_an_image_of_its_layers(noisy: Fidelity) -> None:
    files = report_files(noisy)
    assert set(files) == {report_name("cpu-noise"), plot_name("cpu-noise")}
    assert Fidelity.from_json(files[report_name("cpu-noise")]) == noisy
    small = Image.open(io.BytesIO(files[plot_name("cpu-noise")]))
    assert small.format == "PNG"
    many = tuple(dataclasses.replace(LAYERS[0], layer=f"layers.{i}.fc1") for i in range(140))
    large = Image.open(io.BytesIO(plot_layers(dataclasses.replace(noisy, layers=many))))
    assert small.width == large.width == 990
    assert 250 < small.height < 600
    assert 2000 < large.height < 4000
    drawn = np.asarray(large.convert("RGB"))
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 50
    assert set(report_files(dataclasses.replace(noisy, layers=()))) == {report_name("cpu-noise")}


def test_variants_stand_side_by_side(noisy: Fidelity) -> None:
    other = dataclasses.replace(
        noisy, variant="cpu-other", memory=None, box_iou=None, tasks={}, layers=(), notes=()
    )
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(render_reports([noisy, other]))
    text = console.export_text()
    assert "cpu-noise" in text
    assert "cpu-other" in text
    assert f"{noisy.forced_agreement:.2%}" in text
    assert f"{noisy.tasks['caption'].variant:.3f}" in text
    assert "layers.0.qkv" in text
    assert "cpu-noise: a note" in text
    only = Console(width=120, record=True, file=io.StringIO())
    only.print(render_reports([other]))
    assert "boxes" not in only.export_text()
