"""Bundles whose files are links: every command works, and nothing is written through a link."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from paligemma_edge import PaliGemma
from paligemma_edge.runtime.bundle.bundle import Bundle
from paligemma_edge.runtime.cli.main import main
from tests.helpers.adapters import train
from tests.helpers.fake_hub import keep
from tests.helpers.journey import call

CHECKPOINT = "samples/shapes/checkpoint"
IMAGE = "samples/images/00.png"


@pytest.fixture(params=["cache", "hard links", "links within"])
def shared(request: pytest.FixtureRequest, shapes_copy: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A bundle, and the folder whose files it shares."""
    if request.param == "cache":
        kept = keep(tmp_path / "hub", "me/shapes", shapes_copy, inner="mix")
        return kept, kept.parents[2] / "blobs"
    if request.param == "hard links":
        shutil.copytree(shapes_copy, tmp_path / "twin", copy_function=os.link)
        return shapes_copy, tmp_path / "twin"
    (shapes_copy / "store").mkdir()
    for number, path in enumerate(sorted(shapes_copy.glob("cpu-fp32/*.data"))):
        path.rename(shapes_copy / "store" / str(number))
        path.symlink_to(f"../store/{number}")
    return shapes_copy, shapes_copy / "store"


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora") / "lora"
    return train(Path(CHECKPOINT), folder, target_modules="all-linear")


def _state(folder: Path) -> dict[Path, tuple[bytes, tuple[int, ...]]]:
    """Contents, and what else a write changes."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path: (path.read_bytes(), _written(path.stat())) for path in paths}


def _written(status: os.stat_result) -> tuple[int, ...]:
    return status.st_ino, status.st_mode, status.st_size, status.st_mtime_ns


def test_every_command_takes_a_bundle_of_links(
    shared: tuple[Path, Path], shapes_bundle: Path, adapter: Path, tmp_path: Path
) -> None:
    path, twin = shared
    before = _state(twin)
    few = tmp_path / "few"
    few.mkdir()
    shutil.copy(IMAGE, few)
    asked = ("detect star", IMAGE, "--json")
    here = call("run", path, *asked, light=True)
    assert here.stdout == call("run", shapes_bundle, *asked, light=True).stdout != ""
    assert "cpu-fp32" in call("inspect", path, light=True).stdout
    bundle, variant = str(path), ("--variant", "cpu-fast")
    for command in (
        ("verify", bundle, CHECKPOINT, "--max-new-tokens", "2"),
        ("quantize", bundle, "cpu-fast", "--no-report", "--calibrate", str(few)),
        ("prepack", bundle, "--variant", "cpu-fp32"),
        ("prepack", bundle, *variant),
        ("check", bundle),
        ("prepack", bundle, "--remove"),
        ("adapter", bundle, str(adapter), "--name", "one"),
        ("run", bundle, *asked, "--adapter", "one"),
        ("run", bundle, *asked, "--adapter", "one", *variant),
        ("adapter", bundle, "--name", "one", "--remove"),
        ("check", bundle, *variant),
    ):
        assert main([*command, "--quiet"]) == 0, command
    assert _state(twin) == before
    Bundle.open(path).verify(Bundle.open(path).manifest.files)


def test_an_adapter_that_came_with_the_cache(
    shapes_copy: Path, adapter: Path, tmp_path: Path
) -> None:
    """Its LoRA graphs and the weights that they read are links in different folders."""
    added = ["adapter", str(shapes_copy), str(adapter), "--name", "one", "--quiet"]
    assert main(added) == 0
    kept = keep(tmp_path / "hub", "me/shapes", shapes_copy)
    models = (PaliGemma(one, device="cpu") for one in (shapes_copy, kept))
    answers = [model.generate(IMAGE, "detect star", adapter="one") for model in models]
    assert answers[0].token_ids == answers[1].token_ids
    assert answers[0].log_probs == answers[1].log_probs


def _with_a_link(folder: Path, _: Path) -> Path:
    """The weights of one graph are a link out of its folder, within the bundle."""
    weights = folder / "cpu-fp32" / "mask_decoder.onnx.data"
    weights.rename(folder / "weights")
    weights.symlink_to("../weights")
    return folder


def _with_copies(*endings: str) -> Callable[[Path, Path], Path]:
    """In the Hub's cache files of one graph are copied in the place of their links."""

    def copied(folder: Path, cache: Path) -> Path:
        kept = keep(cache, "me/shapes", folder)
        for ending in endings:
            path = kept / "cpu-fp32" / f"vision_encoder{ending}"
            blob = path.resolve()
            path.unlink()
            shutil.copy(blob, path)
        return kept

    return copied


MIXED = {
    "a link out of its folder": _with_a_link,
    "a copied graph with its weights": _with_copies(".onnx", ".onnx.data"),
    "a copied graph": _with_copies(".onnx"),
    "copied weights": _with_copies(".onnx.data"),
}


@pytest.mark.parametrize("name", MIXED)
def test_some_weights_are_links_and_others_are_files(
    name: str, shapes_bundle: Path, shapes_copy: Path, tmp_path: Path
) -> None:
    """POSIX opens a link as the file that it leads to: the answers are those of the files."""
    mixed = MIXED[name](shapes_copy, tmp_path / "hub")
    wanted, given = (
        PaliGemma(path, device="cpu").segment(IMAGE, "star").to_json()
        for path in (shapes_bundle, mixed)
    )
    assert json.loads(given)["objects"] == json.loads(wanted)["objects"] != []
