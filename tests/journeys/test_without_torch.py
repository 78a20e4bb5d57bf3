"""Exporting, quantizing and adapters where neither torch nor transformers can be imported."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from paligemma_edge.runtime.bundle.bundle import Bundle
from paligemma_edge.runtime.cli import main as cli
from tests.helpers import adapters as peft
from tests.helpers.fake_hub import keep
from tests.helpers.journey import VERIFY, call, refused, without

MakeCheckpoint = Callable[..., Path]
IMAGES = Path("samples/images")
NO_TORCH = without(*VERIFY)


def done(*commands: Sequence[str | Path]) -> str:
    """What commands print that must succeed without torch, one after another in one process."""
    result = call(json.dumps(commands, default=str), program=NO_TORCH)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint: MakeCheckpoint) -> Path:
    """bfloat16, with a tokenizer that has to be converted."""
    folder = make_checkpoint(dtype="bfloat16", text={"model_type": "gemma2"})
    (folder / "tokenizer.model").unlink()
    return folder


@pytest.fixture(scope="module")
def lora(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora") / "lora"
    return peft.train(checkpoint, folder, target_modules="all-linear")


def test_from_the_hub_to_quantized_variants_and_adapters(
    checkpoint: Path, lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calibration, GPTQ, reports and plots, a name on the Hub, adapters switched and merged."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    keep(tmp_path / "home" / "hub", "me/tiny", checkpoint)
    bundle, merged = tmp_path / "x.bundle", tmp_path / "merged.bundle"
    calibrate = ("--calibrate", one_question(tmp_path / "few"))
    printed = done(
        ("export", "me/tiny", bundle, "--note", "kept"),
        ("quantize", bundle, "cpu-int4", *calibrate),
        ("adapter", bundle, lora, "--name", "mine"),
        ("export", "me/tiny", merged, "--adapter", lora, "--variant", "cpu-int8", *calibrate),
    )
    assert "added adapter mine" in printed
    assert (bundle / "fidelity/cpu-int4.png").is_file()
    manifest = Bundle.open(bundle).manifest
    assert list(manifest.variants) == ["cpu-fp32", "cpu-int4"]
    assert manifest.note == "kept"
    assert "adapters" in Bundle.open(merged).manifest.source


def one_question(folder: Path) -> Path:
    """A folder to calibrate with and to compare answers on, both in little time."""
    folder.mkdir()
    (folder / "00.png").write_bytes((IMAGES / "00.png").read_bytes())
    entry = {"image": "00.png", "questions": [{"prompt": "detect star"}]}
    (folder / "prompts.json").write_text(json.dumps([entry]), encoding="utf-8")
    return folder


def test_verify_names_the_extra_before_it_reads_anything(tmp_path: Path) -> None:
    line = refused("verify", tmp_path / "no.bundle", "google/no-such", program=NO_TORCH)
    assert "`verify` needs the package torch, which is not installed; " in line
    assert "pip install 'paligemma-edge[verify]'" in line
    assert "download.pytorch.org/whl/cpu" in line
    program = f"import sys; sys.modules['torch'] = object()\n{without('transformers')}"
    line = refused("verify", tmp_path / "x", "google/y", program=program)
    assert line.endswith("run: pip install 'paligemma-edge[verify]'")


def test_a_name_on_the_hub_without_huggingface_hub(tmp_path: Path) -> None:
    program = without("huggingface_hub")
    line = refused("export", "google/paligemma-3b-mix-224", tmp_path / "x", program=program)
    assert "the package huggingface_hub is needed" in line
    assert "pip install 'paligemma-edge[hub]'" in line


@pytest.mark.parametrize("name", ["paligemma-3b-mix-224", "PaliGemma2-3b-pt-448"])
def test_a_released_name_without_its_owner(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["export", name, str(tmp_path / "x")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{name} is not a directory; give google/{name.lower()}, its name on the Hugging" in line


@pytest.mark.parametrize("name", ["mine", "/no/paligemma-3b-mix-224", "paligemma-3b mix"])
def test_another_name_gets_no_guess(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["export", name, str(tmp_path / "x")]) == 1
    assert "google/" not in capsys.readouterr().err
