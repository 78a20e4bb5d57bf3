"""Whole journeys through the command line, each in a process of its own, as a user takes them."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CHECKPOINT = Path("samples/shapes/checkpoint")
MASKS = CHECKPOINT / "vae-oid.npz"
HEAVY = ("torch", "transformers", "onnx", "onnx_ir", "onnxscript", "safetensors", "rich")

# Runs the command where none of the packages of the extras can be imported.
LIGHT = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Block())
from paligemma_edge.runtime.cli import main
sys.exit(main())
"""


def call(*arguments: str | Path, light: bool = False) -> subprocess.CompletedProcess[str]:
    command = ["-c", LIGHT] if light else ["-m", "paligemma_edge.runtime.cli"]
    return subprocess.run(
        [sys.executable, *command, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def refused(*arguments: str | Path, light: bool = False) -> str:
    """The one line that a refused command prints."""
    done = call(*arguments, light=light)
    assert done.returncode == 1, done
    (line,) = done.stderr.splitlines()
    assert line.startswith("paligemma-edge: ")
    return line


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    return tmp_path / "noise.png"


def test_from_a_checkpoint_to_an_answer_and_back_to_the_original(tmp_path: Path) -> None:
    bundle, picture = (
        tmp_path / "shapes.bundle",
        next(Path("samples/shapes/pictures").glob("*.png")),
    )
    exported = call("export", CHECKPOINT, bundle, "--mask-decoder", MASKS)
    assert exported.returncode == 0, exported.stderr
    assert "cpu-fp32" in exported.stdout

    answered = call("run", bundle, "caption en", picture, "--json", light=True)
    assert answered.returncode == 0, answered.stderr
    answer = json.loads(answered.stdout)
    assert answer["text"]
    assert set(answer["seconds"]) >= {"preprocess", "vision", "projector", "prefill"}

    verified = call("verify", bundle, CHECKPOINT, "--max-new-tokens", "16")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    checked = call("check", bundle, light=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_inspect_says_what_the_bundle_holds(shapes_bundle: Path) -> None:
    words = call("inspect", shapes_bundle, light=True).stdout
    assert "cpu-fp32: bfloat16 weights, computes in float32" in words
    manifest = json.loads(call("inspect", shapes_bundle, "--json", light=True).stdout)
    assert all(record["sha256"] in words for record in manifest["files"].values())


def test_streamed_text_is_the_answer(shapes_bundle: Path, picture: Path) -> None:
    options = (shapes_bundle, "caption en", picture, "--max-new-tokens", "8")
    whole = json.loads(call("run", *options, "--json").stdout)["text"]
    assert call("run", *options, "--stream").stdout == whole + "\n"


def test_json_is_one_object_a_picture(shapes_bundle: Path, picture: Path) -> None:
    done = call("run", shapes_bundle, "caption en", picture, picture, "--json")
    first, second = map(json.loads, done.stdout.splitlines())
    assert first["image"] == str(picture)
    assert first["token_ids"] == second["token_ids"]


def test_drawing_writes_a_picture_of_the_same_size(
    shapes_bundle: Path, picture: Path, tmp_path: Path
) -> None:
    target = tmp_path / "drawn.png"
    done = call("run", shapes_bundle, "detect red circle", picture, "--draw", target)
    assert done.returncode == 0, done.stderr
    assert Image.open(target).size == Image.open(picture).size


def test_what_is_wrong_is_said_in_one_line(
    shapes_bundle: Path, picture: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.png").write_text("no picture")
    ask = ("run", shapes_bundle, "caption en")
    assert "does not exist" in refused("run", tmp_path / "no.bundle", "caption en", picture)
    assert "variant is 'cpu-int3'" in refused(*ask, picture, "--variant", "cpu-int3")
    assert "text.png" in refused(*ask, tmp_path / "text.png")
    assert "missing.png" in refused(*ask, tmp_path / "missing.png")
    assert "prompt" in refused("run", shapes_bundle, "", picture)
    assert "shorten the prompt" in refused("run", shapes_bundle, "word " * 999, picture)
    assert "max_new_tokens is 0" in refused(*ask, picture, "--max-new-tokens", "0")
    assert "--temperature" in refused(*ask, picture, "--top-k", "3")
    assert "drawn.xyz" in refused(*ask, picture, "--draw", tmp_path / "drawn.xyz")


def test_cuda_without_cuda_is_an_error(shapes_bundle: Path, picture: Path) -> None:
    line = refused("run", shapes_bundle, "caption en", picture, "--device", "cuda")
    assert "cuda" in line


def test_a_command_whose_packages_are_absent_names_the_pip_command(tmp_path: Path) -> None:
    line = refused("export", CHECKPOINT, tmp_path / "x", light=True)
    assert "pip install 'paligemma-edge[export]'" in line


def test_an_existing_bundle_is_kept(shapes_bundle: Path) -> None:
    before = (shapes_bundle / "manifest.json").read_bytes()
    assert "--overwrite" in refused("export", CHECKPOINT, shapes_bundle)
    assert (shapes_bundle / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_export_leaves_nothing(tmp_path: Path, sign: signal.Signals) -> None:
    # The process is stopped by itself in the middle of the weights, so that no clock decides.
    code = (
        "import os, sys\n"
        "from paligemma_edge.export import exporter\n"
        "from paligemma_edge.runtime.cli import main\n"
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
    assert done.returncode == 130
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
        "import sys, paligemma_edge.runtime as r; r.PaliGemma\n"
        "import paligemma_edge.runtime.cli, paligemma_edge.runtime.draw\n"
        f"print([name for name in {(*HEAVY, 'export', 'quantize', 'runtime')!r} "
        "if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_names_every_command_and_shows_examples() -> None:
    words = call("--help", light=True).stdout
    for command in ("export", "verify", "run", "inspect", "check"):
        assert f"\n    {command} " in words
    assert "examples:" in words
    assert call("run", "--help", light=True).returncode == 0
    assert call("export", "--help").returncode == 0
    assert call("no-such-command").returncode == 2
