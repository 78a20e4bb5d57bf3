"""Whole journeys through the command line, each in a process of its own, as a user takes them."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from paligemma_edge.quantize.recipes.recipe import shipped
from paligemma_edge.runtime.cli import main as cli
from paligemma_edge.runtime.device.ort import ort
from tests.helpers.journey import HEAVY, call, refused, stages_of, without

CHECKPOINT = Path("samples/shapes/checkpoint")
IMAGES = Path("samples/images")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    return tmp_path / "noise.png"


def test_from_a_checkpoint_to_an_answer_and_back_to_the_original(tmp_path: Path) -> None:
    bundle, image = (
        tmp_path / "shapes.bundle",
        next(Path("samples/images").glob("*.png")),
    )
    exported = call("export", CHECKPOINT, bundle, "--note", "line 3, retrained")
    assert exported.returncode == 0, exported.stderr
    assert "cpu-fp32" in exported.stdout
    masks, licence, *stages = exported.stderr.splitlines()
    assert f"{CHECKPOINT / 'vae-oid.npz'} is taken" in masks
    assert "LICENSE of the checkpoint" in licence
    assert stages_of(stages) == ["writing", "hashing"]
    words = call("inspect", bundle, light=True).stdout
    assert re.search(r"\nnote +line 3, retrained\n", words)
    assert re.search(r"\nlicence +licenses/LICENSE\n", words)
    assert (bundle / "licenses/LICENSE").read_bytes() == Path("LICENSE").read_bytes()

    answered = call("run", bundle, "caption en", image, "--json", light=True)
    assert answered.returncode == 0, answered.stderr
    answer = json.loads(answered.stdout)
    assert answer["text"]
    assert 0 < answer["confidence"] < 1

    verified = call("verify", bundle, CHECKPOINT, "--max-new-tokens", "16")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    checked = call("check", bundle, light=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """A folder of the first three sample images and what is asked about them."""
    folder = tmp_path / "few"
    folder.mkdir()
    entries = json.loads((IMAGES / "prompts.json").read_text())[:3]
    (folder / "prompts.json").write_text(json.dumps(entries))
    for entry in entries:
        for name in (entry["image"], entry["masks"]):
            shutil.copy(IMAGES / name, folder)
    return folder


def test_a_bundle_gets_smaller_variants_that_answer_alike(tmp_path: Path, few: Path) -> None:
    bundle, names = tmp_path / "shapes.bundle", ("cpu-int4", "cpu-fast")
    assert call("export", CHECKPOINT, bundle).returncode == 0
    quantized = call("quantize", bundle, *names, "--calibrate", few)
    assert quantized.returncode == 0, quantized.stderr
    assert f"{bundle}: added cpu-int4, cpu-fast" in quantized.stdout
    for name in names:
        plot = bundle / "fidelity" / f"{name}.png"
        assert f"errors by layer: {plot}\n" in quantized.stdout
        with Image.open(plot) as drawn:
            assert drawn.format == "PNG"

    words = call("inspect", bundle, light=True).stdout
    for name in names:
        assert re.search(rf"\n{name} +cpu +int4 +float32 +[0-9.]+ MB +[0-9]+ MB +[0-9.]+%", words)
    assert re.search(r"\ncpu-fp32 .* reference", words)
    more = call("inspect", bundle, "--verbose", light=True).stdout
    assert more.count("\n  compared with cpu-fp32, ") == 2

    ask = ("run", bundle, "caption en", few / "00.png", "--variant")
    answers = {name: call(*ask, name, light=True).stdout for name in ("cpu-fp32", *names)}
    assert answers["cpu-fp32"].strip()
    assert len(set(answers.values())) == 1

    assert call("verify", bundle, CHECKPOINT, "--max-new-tokens", "16").returncode == 0
    for name in names:
        checked = call("check", bundle, "--variant", name, light=True)
        assert checked.returncode == 0, checked.stdout + checked.stderr
        assert name in checked.stdout
        prepacked = call("prepack", bundle, "--variant", name, light=True)
        assert prepacked.returncode == 0, prepacked.stderr
        assert call(*ask, name, light=True).stdout == answers[name]
    assert call("inspect", bundle, light=True).stdout.count("\nprepacked  ") == 2


def test_a_small_variant_straight_from_the_checkpoint(tmp_path: Path, few: Path) -> None:
    bundle = tmp_path / "small.bundle"
    exported = call("export", CHECKPOINT, bundle, "--variant", "cpu-int4", "--no-calibration")
    assert exported.returncode == 0, exported.stderr
    assert f"{bundle}: cpu-int4, " in exported.stdout
    assert call("run", bundle, "caption en", few / "00.png", light=True).stdout.strip()
    assert "quantized already" in refused("quantize", bundle, "cpu-fast")


def test_what_is_wrong_with_quantizing_is_reported_in_one_line(
    shapes_bundle: Path, tmp_path: Path
) -> None:
    before = contents(shapes_bundle)
    line = refused("quantize", shapes_bundle, "cpu-int3", code=2)
    assert "there is no recipe 'cpu-int3'; did you mean cpu-int" in line
    assert "cpu-int4" in line
    (tmp_path / "cpu-mine.toml").write_text("about = 1")
    assert "has no weights" in refused("quantize", "b", tmp_path / "cpu-mine.toml", code=2)
    assert "does not exist" in refused("quantize", tmp_path / "no.bundle", "cpu-int4")
    calibrated = ("quantize", shapes_bundle, "cpu-int4", "--calibrate")
    (tmp_path / "empty").mkdir()
    assert "no readable image" in refused(*calibrated, tmp_path / "empty", code=2)
    assert "does not exist" in refused(*calibrated, tmp_path / "missing", code=2)
    share = ("quantize", shapes_bundle, "cpu-int4", "--min-agreement", "1.5")
    assert "min_agreement is 1.5" in refused(*share, code=2)
    twice = ("quantize", shapes_bundle, "cpu-int4", "cpu-int4")
    assert "requested 2 times" in refused(*twice, code=2)
    line = refused("quantize", shapes_bundle, "cpu-int4", light=True)
    assert "pip install 'paligemma-edge[export]'" in line
    assert contents(shapes_bundle) == before


def test_images_that_cannot_calibrate_are_named(shapes_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos["
    folder.mkdir()
    (folder / "bold]notes.txt").write_text("no image")  # in a path that looks like markup
    done = call("quantize", shapes_bundle, "cpu-int4", "--calibrate", folder)
    assert done.returncode == 2
    skipped, refusal = done.stderr.splitlines()
    assert "skipped" in skipped
    assert "photos[/bold]notes.txt" in skipped
    assert refusal.startswith("paligemma-edge: ")
    assert "holds no readable image" in refusal


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_quantizing_leaves_the_bundle_as_it_was(
    shapes_copy: Path, sign: signal.Signals
) -> None:
    before = contents(shapes_copy)
    # The process is stopped by itself in the middle of the weights, so that no clock decides.
    code = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from paligemma_edge.quantize.variant import files as variant\n"
        "from paligemma_edge.runtime.cli.main import main\n"
        "write, calls = variant.write_graph, []\n"
        "def stop(*arguments):\n"
        "    write(*arguments); calls.append(1)\n"
        f"    len(calls) == 2 and os.kill(os.getpid(), {int(sign)})\n"
        "variant.write_graph = stop\n"
        "sys.exit(main())\n"
    )
    command = ["quantize", str(shapes_copy), "cpu-int8", "--no-calibration", "--no-report", "-q"]
    done = subprocess.run(
        [sys.executable, "-c", code, *command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 128 + sign  # as a shell says it
    assert done.stderr == "paligemma-edge: interrupted; nothing half-written was left\n"
    assert contents(shapes_copy) == before


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a bundle, hidden ones too."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_help_of_quantize_lists_the_recipes() -> None:
    words = call("quantize", "--help").stdout
    assert "\n  paligemma-edge quantize mix.bundle cpu-int4 cpu-fast\n" in words
    for name, about in shipped().items():
        assert f"\n  {name:<10} {about}\n" in words


def test_inspect_says_what_the_bundle_holds(shapes_bundle: Path) -> None:
    words = call("inspect", shapes_bundle, light=True).stdout
    row = r"\ncpu-fp32 +cpu +bfloat16 +float32 +14.9 MB +[0-9]+ MB +- +default here\n"
    assert re.search(row, words)
    assert re.search(r"\ndefault +cpu-fp32 ", words)
    assert re.search(r"\nimage +112 x 112 pixels, 64 tokens\n", words)
    assert re.search(r"\nmemory +forecast for 4 answers at a time of at most 512 tokens\n", words)
    manifest = json.loads(call("inspect", shapes_bundle, "--json", light=True).stdout)
    digests = [record["sha256"] for record in manifest["files"].values()]
    assert not any(digest in words for digest in digests)
    listed = call("inspect", shapes_bundle, "--files", light=True).stdout
    assert all(digest in listed for digest in digests)


def test_the_command_runs_in_a_thread_and_leaves_signals_alone(shapes_bundle: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(cli.main, ["inspect", str(shapes_bundle)]).result() == 0
    assert cli.main(["inspect", str(shapes_bundle)]) == 0
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_interrupted_run_promises_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import sys\n"
        "from paligemma_edge.runtime.bundle.bundle import Bundle\n"
        "from paligemma_edge.runtime.cli import main as cli\n"
        "def stop(path): raise KeyboardInterrupt\n"
        "Bundle.open = stop\n"
        "sys.exit(cli.main(['inspect', 'x']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "paligemma-edge: interrupted\n")


def test_cuda_without_cuda_is_an_error(shapes_bundle: Path, image: Path) -> None:
    line = refused("run", shapes_bundle, "caption en", image, "--device", "cuda")
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        assert "device cuda was requested" in line
        assert "paligemma-edge[cuda]" in line
    assert "quantize" not in line


def test_a_command_whose_packages_are_absent_names_the_pip_command(tmp_path: Path) -> None:
    line = refused("export", CHECKPOINT, tmp_path / "x", light=True)
    assert "pip install 'paligemma-edge[export]'" in line


@pytest.mark.parametrize("command", [("run", "b", "caption en", "p.png"), ("check", "b")])
def test_without_onnxruntime_the_pip_command_is_named(command: tuple[str, ...]) -> None:
    line = refused(*command, program=without(*HEAVY, "onnxruntime"))
    assert "pip install 'paligemma-edge[cpu]'" in line


def test_a_missing_package_of_ours_is_a_fault_and_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ModuleNotFoundError(name="paligemma_edge.export.lost")

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(ModuleNotFoundError):
        cli.main(["verify"])


def test_an_existing_bundle_is_kept(shapes_bundle: Path) -> None:
    before = (shapes_bundle / "manifest.json").read_bytes()
    assert "--overwrite" in refused("export", CHECKPOINT, shapes_bundle)
    assert (shapes_bundle / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_export_leaves_nothing(tmp_path: Path, sign: signal.Signals) -> None:
    # The process is stopped by itself in the middle of the weights, so that no clock decides.
    code = (
        "import os, signal, sys\n"
        # A parent that runs us in the background has SIGINT ignored, and Python keeps that.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from paligemma_edge.export import exporter\n"
        "from paligemma_edge.runtime.cli.main import main\n"
        "write, calls = exporter.write_graph, []\n"
        "def stop(*arguments):\n"
        "    write(*arguments); calls.append(1)\n"
        f"    len(calls) == 2 and os.kill(os.getpid(), {int(sign)})\n"
        "exporter.write_graph = stop\n"
        "sys.exit(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "export", str(CHECKPOINT), str(tmp_path / "x.bundle")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 128 + sign  # as a shell says it
    assert done.stderr.strip().splitlines()[-1].startswith("paligemma-edge: interrupted")
    assert not list(tmp_path.iterdir())


def test_a_broken_checkpoint_leaves_nothing(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(CHECKPOINT, copy)
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "model.safetensors" in refused("export", copy, tmp_path / "x.bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_the_runtime_imports_nothing_of_the_extras() -> None:
    code = (
        "import sys, paligemma_edge; paligemma_edge.PaliGemma\n"
        "import paligemma_edge.runtime.cli.main, paligemma_edge.runtime.results.draw\n"
        f"print([name for name in {(*HEAVY, 'export', 'quantize', 'runtime')!r} "
        "if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_names_every_command_and_shows_examples() -> None:
    words = call("--help", light=True).stdout
    for command in (
        *("export", "quantize", "verify", "adapter"),
        *("run", "inspect", "check", "prepack", "bench"),
    ):
        assert f"\n  {command} " in words
    assert "examples:" in words
    assert "exit codes: 0 done" in words
    for command in ("run", "inspect", "check"):
        assert (
            f"  paligemma-edge {command} mix.bundle" in call(command, "--help", light=True).stdout
        )
    example = "  paligemma-edge export paligemma-3b-mix-224 mix.bundle --mask-decoder vae-oid.npz\n"
    assert example in call("export", "--help").stdout
    assert call("no-such-command").returncode == 2
