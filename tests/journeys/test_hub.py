"""Journeys from a name on the Hub, through the command line, as huggingface_hub is set up."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.fake_hub import keep
from tests.helpers.journey import call, refused, stages_of, without

NAME = "google/paligemma-shapes"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    for name in ("HF_HUB_CACHE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "home"


def test_from_the_cache_without_a_network(
    home: Path, shapes_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "hub.bundle"
    assert str(home / "hub") in refused("export", NAME, bundle, "--from-cache")
    keep(home / "hub", NAME, shapes_checkpoint)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE is set" in refused("export", "google/other", bundle)
    exported = call("export", NAME, bundle)
    assert exported.returncode == 0, exported.stderr
    masks, licence, *stages = exported.stderr.splitlines()
    assert "vae-oid.npz is taken" in masks
    assert "LICENSE of the checkpoint" in licence
    assert stages_of(stages) == ["writing", "hashing"]  # and no bar: that is for a terminal
    assert f"{NAME}@{'0' * 40}" in call("inspect", bundle, light=True).stdout


def test_a_hub_that_cannot_be_reached(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nothing answers there
    line = refused("export", NAME, tmp_path / "x.bundle")
    assert f"{NAME} is not a path here, and cannot be fetched from the Hub" in line
    assert not (tmp_path / "x.bundle").exists()


@pytest.mark.parametrize("command", ["export", "verify", "adapter", "quantize"])
def test_help_needs_no_package_of_the_extra(command: str) -> None:
    shown = call(command, "--help", light=True)
    assert shown.returncode == 0, shown.stderr
    assert f"usage: paligemma-edge {command} " in shown.stdout
    assert f"\n  paligemma-edge {command} " in shown.stdout


def test_every_command_that_reads_takes_a_bundle_by_its_name(
    home: Path, shapes_bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kept = keep(home / "hub", "me/shapes", shapes_bundle)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the cache has it, so nobody asks
    asked = ("detect star", Path("samples/images/00.png").resolve(), "--json")
    monkeypatch.chdir(tmp_path)
    answered = call("run", "me/shapes", *asked, light=True)
    assert answered.stdout == call("run", shapes_bundle, *asked, light=True).stdout != ""
    words = call("inspect", f"me/shapes@{'0' * 40}", light=True)
    assert words.stdout.startswith(f"{kept}\n"), words.stderr
    assert call("check", "me/shapes@main", light=True).stdout.startswith("passed: ")
    few = ("--steps", "2", "--runs", "1")
    assert call("bench", "me/shapes", *few, light=True).returncode == 0
    assert "bundle me/shapes does not exist" in refused("prepack", "me/shapes", light=True)


def test_a_name_without_the_package_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    line = refused("inspect", "me/shapes", program=without("huggingface_hub"))
    assert "there is no me/shapes here; for a name on the Hugging Face Hub the package" in line
    assert "pip install 'paligemma-edge[hub]'" in line
