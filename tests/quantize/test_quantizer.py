"""Quantizing a bundle: a variant is added whole, with its report, or nothing is changed."""

from __future__ import annotations

import dataclasses
import errno
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import onnx
import onnx_ir as ir
import pytest

from paligemma_edge import PaliGemma
from paligemma_edge.export.exporter import export
from paligemma_edge.quantize import quantizer
from paligemma_edge.quantize.fidelity.questions import sample_questions
from paligemma_edge.quantize.graphs.graph_file import write_graph
from paligemma_edge.quantize.quantizer import QuantizeOptions, quantize
from paligemma_edge.quantize.recipes.recipe import Assignment, Recipe, Scheme, load_recipe, shipped
from paligemma_edge.quantize.variant import files as variant
from paligemma_edge.runtime.bundle.bundle import Bundle
from paligemma_edge.runtime.bundle.fidelity import Fidelity, plot_name, report_name
from paligemma_edge.runtime.errors import BundleError, OptionError, OutputError
from paligemma_edge.runtime.progress import Progress
from tests.helpers.journey import call
from tests.journeys.test_commands import contents

# All that a recipe can ask for, with the quickest roundings.
RECIPE = Recipe(
    about="a test",
    weights="int4",
    rotate=True,
    smooth=0.5,
    refine=16,
    prefill=True,
    schemes={
        "int8": Scheme(kind="integer", rounding="search"),
        "fine": Scheme(kind="integer", inputs=16, rounding="search"),
        "int4": Scheme(kind="blockwise", bits=4, block=32, rounding="search"),
        "gptq": Scheme(kind="blockwise", bits=4, block=64, pad=True),
    },
    layers=(
        Assignment(match="vision.*", scheme="int8", safer=("fine",), most_error=0.006),
        Assignment(match="prefill.*", scheme="fine"),
        Assignment(match="decoder.*", scheme="int4"),
        Assignment(match="decoder.layers.3.down_proj", scheme="gptq"),
    ),
    name="cpu-test",
)
COARSE = dataclasses.replace(
    RECIPE, prefill=False, layers=(Assignment(match="decoder.*", scheme="int4"),)
)
QUESTIONS = tuple(q for q in sample_questions() if q.image.stem in ("00", "01"))
PLAIN = QuantizeOptions(questions=QUESTIONS, calibrate=False, report=False)
CALIBRATED = QuantizeOptions(questions=QUESTIONS, max_new_tokens=24)
GRAPHS = {"vision_encoder", "projector", "prefill", "decoder", "mask_decoder"}


@pytest.fixture(scope="module")
def quantized(
    shapes_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Fidelity], list[str]]:
    """The sample bundle with one more variant, its report, and what was noted."""
    path = Path(shutil.copytree(shapes_bundle, tmp_path_factory.mktemp("q") / "q.bundle"))
    notes: list[str] = []
    return path, quantize(path, [RECIPE], CALIBRATED, note=notes.append), notes


Quantized = tuple[Path, list[Fidelity], list[str]]


def test_a_variant_is_added_and_the_rest_stays(quantized: Quantized, shapes_bundle: Path) -> None:
    path, _, _ = quantized
    bundle = Bundle.open(path)
    assert list(bundle.manifest.variants) == ["cpu-fp32", "cpu-test"]
    bundle.verify(bundle.manifest.files)
    before, after = contents(shapes_bundle), contents(path)
    assert set(before) <= set(after)
    assert [name for name in before if before[name] != after[name]] == ["manifest.json"]
    added = set(after) - set(before)
    assert added | set(before) == {*bundle.manifest.files, "manifest.json"}
    assert all(name.startswith(("cpu-test/", "fidelity/cpu-test.")) for name in added)


def test_the_manifest_says_what_the_variant_is(quantized: Quantized) -> None:
    path, _, _ = quantized
    manifest = Bundle.open(path).manifest
    lossless, added = manifest.variants.values()
    assert (added.device, added.recipe) == ("cpu", "test")
    assert (added.weight_dtype, added.compute_dtype) == ("int4", "float32")
    assert set(added.graphs) == GRAPHS
    assert set(added.files) == {name for name in manifest.files if name.startswith("cpu-test/")}
    assert set(added.graphs.values()) < set(added.files)
    assert 0 < added.memory_bytes < 0.6 * lossless.memory_bytes
    for graph in added.graphs.values():
        onnx.checker.check_model(path / graph)


def operators(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(path, load_external_data=False).graph.node}


def test_layers_are_computed_as_the_recipe_says(quantized: Quantized) -> None:
    folder = quantized[0] / "cpu-test"
    assert "MatMulNBits" in operators(folder / "decoder.onnx")
    assert "TopK" in operators(folder / "decoder.onnx"), "the best logits are refined"
    for graph in ("vision_encoder", "prefill"):
        assert "MatMulIntegerToFloat" in operators(folder / f"{graph}.onnx")
        assert "MatMulNBits" not in operators(folder / f"{graph}.onnx")


def test_the_report_and_its_plot_lie_in_the_bundle(quantized: Quantized) -> None:
    path, (report,), notes = quantized
    bundle = Bundle.open(path)
    assert Fidelity.find(bundle, "cpu-test") == Fidelity.from_json(report.to_json())
    assert report_name("cpu-test") in bundle.manifest.files
    assert bundle.file(plot_name("cpu-test")).read_bytes().startswith(b"\x89PNG")
    assert (report.variant, report.reference) == ("cpu-test", "cpu-fp32")
    assert report.questions == len(QUESTIONS)
    assert report.forced_agreement > 0.9
    assert report.logit_error.mean > 0
    by_graph = {layer.graph for layer in report.layers}
    assert by_graph == {"vision_encoder", "prefill", "decoder"}
    schemes = {layer.layer: layer.scheme for layer in report.layers}
    assert schemes["decoder.layers.3.down_proj"] == "gptq"
    assert schemes["decoder.layers.2.down_proj"] == "int4"
    errors = [layer.relative_error for layer in report.layers]
    assert all(error is not None and 0 < error < 1 for error in errors)
    assert [f"cpu-test: {note}" for note in report.notes] == notes


def test_layers_that_are_too_far_off_take_the_safer_scheme(quantized: Quantized) -> None:
    _, (report,), _ = quantized
    vision = [layer for layer in report.layers if layer.layer.startswith("vision.")]
    moved = [layer.layer for layer in vision if layer.scheme == "fine"]
    assert 0 < len(moved) < len(vision)
    for layer in vision:
        assert layer.relative_error is not None
        assert layer.scheme == "fine" or layer.relative_error <= 0.006
    assert report.notes == (
        f"{len(moved)} of {len(report.layers)} layers fell back to fine: {', '.join(moved)}",
    )


def test_the_variant_answers_without_torch(quantized: Quantized, shapes_images: Path) -> None:
    path, _, _ = quantized
    exact, rounded = (PaliGemma(path, variant=name) for name in ("cpu-fp32", "cpu-test"))
    image = shapes_images / "02.png"
    texts = [model.generate(image, "caption en").text for model in (exact, rounded)]
    assert texts[0] == texts[1]
    done = call("run", path, "caption en", image, "--variant", "cpu-test", light=True)
    assert (done.returncode, done.stdout) == (0, f"{texts[1]}\n"), done.stderr


def test_progress_is_reported_in_order(shapes_copy: Path) -> None:
    stages: list[tuple[str, int, int]] = []
    quantize(
        shapes_copy,
        [COARSE],
        dataclasses.replace(CALIBRATED, questions=QUESTIONS[:2]),
        lambda *stage: stages.append(stage),
    )
    assert list(dict.fromkeys(stage for stage, _, _ in stages))[:6] == [
        "answering",
        "calibrating vision_encoder",
        "calibrating projector",
        "calibrating decoder",
        "choosing schemes of cpu-test",
        "writing cpu-test",
    ]
    writing = [(done, of) for stage, done, of in stages if stage == "writing cpu-test"]
    assert writing == sorted(writing)
    assert len({of for _, of in writing}) == 1
    assert writing[-1][0] > 0.9 * writing[-1][1]


# --- what is there already


def test_a_variant_is_kept_unless_overwrite_is_given(shapes_copy: Path) -> None:
    quantize(shapes_copy, [RECIPE], PLAIN)
    before = contents(shapes_copy)
    with pytest.raises(OptionError, match="has a variant cpu-test and it is kept; give --over"):
        quantize(shapes_copy, [COARSE], PLAIN)
    assert contents(shapes_copy) == before
    quantize(shapes_copy, [COARSE], dataclasses.replace(PLAIN, overwrite=True))
    after = contents(shapes_copy)
    assert "cpu-test/prefill.onnx" in before
    assert "cpu-test/prefill.onnx" not in after
    bundle = Bundle.open(shapes_copy)
    bundle.verify(bundle.manifest.files)
    assert set(after) == {*bundle.manifest.files, "manifest.json"}


def test_a_variant_that_was_overwritten_has_no_old_report(shapes_copy: Path) -> None:
    one = dataclasses.replace(CALIBRATED, questions=QUESTIONS[:1], calibrate=False)
    quantize(shapes_copy, [RECIPE], one)
    quantize(shapes_copy, [COARSE], dataclasses.replace(PLAIN, overwrite=True))
    assert Fidelity.find(Bundle.open(shapes_copy), "cpu-test") is None
    assert not list(shapes_copy.glob("fidelity/*"))


def test_a_bundle_that_is_quantized_already_has_nothing_to_start_from(
    shapes_checkpoint: Path, tmp_path: Path
) -> None:
    path = tmp_path / "small.bundle"
    export(shapes_checkpoint, path, variants=[RECIPE])
    before = contents(path)
    with pytest.raises(BundleError, match="only cpu-test, which are quantized already; wanted"):
        quantize(path, [load_recipe("cpu-int4")], PLAIN)
    assert contents(path) == before


def test_a_bundle_that_is_damaged_is_refused(shapes_copy: Path) -> None:
    weights = shapes_copy / "cpu-fp32" / "decoder.onnx.data"
    with weights.open("r+b") as file:
        file.seek(10_000)
        file.write(b"damage")
    before = contents(shapes_copy)
    with pytest.raises(BundleError, match=r"decoder\.onnx\.data differs from its sha256"):
        quantize(shapes_copy, [RECIPE], PLAIN)
    assert contents(shapes_copy) == before


def test_a_missing_bundle_is_reported(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="does not exist"):
        quantize(tmp_path / "no.bundle", [RECIPE], PLAIN)


def test_what_does_not_fit_is_refused_before_any_work(
    shapes_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(shapes_copy)
    refuse_to_work(monkeypatch)
    misfit = dataclasses.replace(
        RECIPE, layers=(Assignment(match="text.*", scheme="int4"),), name="cpu-misfit"
    )
    with pytest.raises(OptionError, match="cpu-misfit matches no layer"):
        quantize(shapes_copy, [RECIPE, misfit], CALIBRATED)
    with pytest.raises(OptionError, match="cpu-test is requested 2 times"):
        quantize(shapes_copy, [RECIPE, COARSE], CALIBRATED)
    with pytest.raises(OptionError, match="no question"):
        quantize(shapes_copy, [RECIPE], QuantizeOptions(questions=()))
    for share in (0, -1, 1.01, float("nan")):
        with pytest.raises(OptionError, match="more than 0 and at most 1"):
            quantize(
                shapes_copy, [RECIPE], QuantizeOptions(questions=QUESTIONS, min_agreement=share)
            )
    assert contents(shapes_copy) == before


def refuse_to_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(*_: object) -> None:
        raise AssertionError("work was begun")

    monkeypatch.setattr(quantizer, "with_answers", work)
    monkeypatch.setattr(quantizer, "write_variant", work)


# --- what goes wrong on the way


def stop_at(stage: str) -> Progress:
    """Ctrl-C when a stage is under way."""

    def progress(now: str, done: int, total: int) -> None:
        if now.startswith(stage) and done >= min(1, total // 2):
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize(
    "stage", ["answering", "calibrating decoder", "choosing", "writing", "recording"]
)
def test_an_interrupted_bundle_is_as_it_was(shapes_copy: Path, stage: str) -> None:
    before = contents(shapes_copy)
    with pytest.raises(KeyboardInterrupt):
        quantize(shapes_copy, [COARSE], CALIBRATED, stop_at(stage))
    assert contents(shapes_copy) == before


def test_an_interrupted_report_leaves_a_whole_variant(shapes_copy: Path) -> None:
    options = dataclasses.replace(CALIBRATED, calibrate=False)
    with pytest.raises(KeyboardInterrupt):
        quantize(shapes_copy, [COARSE], options, stop_at("comparing"))
    bundle = Bundle.open(shapes_copy)
    assert "cpu-test" in bundle.manifest.variants
    bundle.verify(bundle.manifest.files)
    assert set(contents(shapes_copy)) == {*bundle.manifest.files, "manifest.json"}


def test_a_failure_while_overwriting_keeps_the_old_variant(shapes_copy: Path) -> None:
    quantize(shapes_copy, [RECIPE], PLAIN)
    before = contents(shapes_copy)
    again = dataclasses.replace(PLAIN, overwrite=True)
    with pytest.raises(KeyboardInterrupt):
        quantize(shapes_copy, [COARSE], again, stop_at("writing"))
    assert contents(shapes_copy) == before


def test_a_disk_that_fills_up_leaves_the_bundle_as_it_was(
    shapes_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(shapes_copy)
    calls = 0

    def fill(model: ir.Model, path: Path, *rest: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        write_graph(model, path)

    monkeypatch.setattr(variant, "write_graph", fill)
    with pytest.raises(OutputError, match="No space left on device; nothing was changed") as caught:
        quantize(shapes_copy, [RECIPE], PLAIN)
    assert caught.value.errno == errno.ENOSPC
    assert calls == 3
    assert contents(shapes_copy) == before


def test_a_disk_that_is_too_small_is_refused_before_it_is_full(
    shapes_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(shapes_copy)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1 << 20))
    with pytest.raises(OutputError, match=r"needs 1\d\.\d MB, .* has 1\.0 MB free") as caught:
        quantize(shapes_copy, [RECIPE], PLAIN)
    assert caught.value.errno == errno.ENOSPC
    assert contents(shapes_copy) == before


def test_a_bundle_that_cannot_be_written_is_reported(
    shapes_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(shapes_copy)

    def readonly(self: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", readonly)
    with pytest.raises(OutputError, match="Read-only file system"):
        quantize(shapes_copy, [RECIPE], PLAIN)
    monkeypatch.undo()
    assert contents(shapes_copy) == before


# --- without calibration, and straight from the checkpoint


def test_without_calibration_no_model_runs(
    shapes_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the model was run")

    monkeypatch.setattr(PaliGemma, "__init__", refuse)
    assert quantize(shapes_copy, [RECIPE], PLAIN) == []
    assert not list(shapes_copy.glob("fidelity/*"))


def test_without_calibration_layers_have_no_error_but_a_scheme(shapes_copy: Path) -> None:
    options = dataclasses.replace(CALIBRATED, questions=QUESTIONS[:1], calibrate=False)
    (report,) = quantize(shapes_copy, [RECIPE], options)
    assert {layer.relative_error for layer in report.layers} == {None}
    assert {layer.scheme for layer in report.layers} == {"int8", "fine", "int4", "gptq"}
    assert report.notes == ()
    assert Fidelity.find(Bundle.open(shapes_copy), "cpu-test") == report


@pytest.mark.all_cores
def test_a_variant_from_the_checkpoint_is_that_of_the_bundle(
    shapes_copy: Path, shapes_checkpoint: Path, tmp_path: Path
) -> None:
    """Byte for byte: only the orientation in which a weight is read differs."""
    recipes = [*map(load_recipe, shipped()), RECIPE]
    masks = shapes_checkpoint / "vae-oid.npz"
    direct = tmp_path / "direct.bundle"
    exported = export(shapes_checkpoint, direct, mask_decoder=masks, variants=recipes)
    quantize(shapes_copy, recipes, PLAIN)
    added = Bundle.open(shapes_copy).manifest
    assert list(exported.variants) == [recipe.name for recipe in recipes]
    for name, found in exported.variants.items():
        assert found == added.variants[name]
        different = [f for f in found.files if exported.files[f] != added.files[f]]
        assert different == []


def test_calibration_makes_another_variant(quantized: Quantized, shapes_copy: Path) -> None:
    path, _, _ = quantized
    quantize(shapes_copy, [RECIPE], PLAIN)
    files: list[Mapping[str, object]] = [Bundle.open(p).manifest.files for p in (path, shapes_copy)]
    for name in ("cpu-test/decoder.onnx.data", "cpu-test/vision_encoder.onnx.data"):
        assert files[0][name] != files[1][name]


def test_a_variant_from_the_checkpoint_is_calibrated_too(
    shapes_copy: Path, shapes_checkpoint: Path, tmp_path: Path
) -> None:
    """By prompts alone: nobody has answered them yet. Float16 has its ranges scanned."""
    stages: list[str] = []
    path = tmp_path / "direct.bundle"
    exported = export(
        shapes_checkpoint,
        path,
        variants=[COARSE, load_recipe("cuda-fp16")],
        questions=QUESTIONS[:2],
        progress=lambda stage, *_: stages.append(stage),
    )
    assert {"calibrating decoder", "scanning ranges of decoder"} <= set(stages)
    quantize(shapes_copy, [COARSE], PLAIN)
    weights = "cpu-test/decoder.onnx.data"
    assert exported.files[weights] != Bundle.open(shapes_copy).manifest.files[weights]


def test_exporting_a_variant_twice_is_refused(shapes_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="cpu-test is requested 2 times, wanted each once"):
        export(shapes_checkpoint, tmp_path / "x.bundle", variants=[RECIPE, None, COARSE])
    with pytest.raises(OptionError, match="cpu-fp32 is requested 2 times"):
        export(shapes_checkpoint, tmp_path / "x.bundle", variants=[None, None])
    assert not list(tmp_path.iterdir())


def test_what_runs_on_a_gpu_alone_is_not_searched(shapes_copy: Path) -> None:
    with pytest.raises(OptionError, match="those of cuda-fp16 run only on a GPU; leave it out"):
        quantize(shapes_copy, [load_recipe("cuda-fp16")], QuantizeOptions(min_agreement=0.9))
