"""Journeys from big_vision's npz and from LoRA adapters, through the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from paligemma_edge.export import exporter
from paligemma_edge.runtime.errors import OutputError
from tests.helpers import adapters as peft
from tests.helpers.big_vision_file import as_big_vision, save, split
from tests.helpers.journey import call, refused

CHECKPOINT = Path("samples/shapes/checkpoint")
IMAGE = Path("samples/images/00.png")


@pytest.fixture(scope="module")
def npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample model as big_vision would have saved it."""
    config = json.loads((CHECKPOINT / "config.json").read_text())
    text, vision = config["text_config"], config["vision_config"]
    arrays = as_big_vision(
        CHECKPOINT,
        vision["num_attention_heads"],
        text["num_attention_heads"],
        text["num_key_value_heads"],
    )
    return save(tmp_path_factory.mktemp("jax") / "shapes.npz", arrays)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora") / "lora"
    return peft.train(CHECKPOINT, folder, target_modules=["q_proj", "down_proj"])


def answer(bundle: Path) -> str:
    done = call("run", bundle, "caption en", IMAGE, light=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    return done.stdout


def test_from_an_npz_to_the_answer_of_hugging_faces_checkpoint(
    npz: Path, shapes_bundle: Path, tmp_path: Path
) -> None:
    bundle = tmp_path / "jax.bundle"
    exported = call("export", npz, bundle, "--tokenizer", CHECKPOINT / "tokenizer.model")
    assert exported.returncode == 0, exported.stderr
    assert answer(bundle) == answer(shapes_bundle)
    assert "shapes.npz" in call("inspect", bundle, light=True).stdout


def test_a_small_variant_from_parts_of_an_npz(npz: Path, tmp_path: Path) -> None:
    (tmp_path / "shapes.npz").write_bytes(npz.read_bytes())
    parts = split(tmp_path / "shapes.npz")
    options = ("--tokenizer", CHECKPOINT, "--no-calibration", "--variant", "cpu-int4")
    bundle = tmp_path / "small.bundle"
    exported = call("export", parts[0], bundle, *options, "--variant", "cpu-int8")
    assert exported.returncode == 0, exported.stderr
    assert answer(bundle)
    parts[1].unlink()
    line = refused("export", tmp_path / "shapes.npz", tmp_path / "other.bundle", *options)
    assert "lacks part1; finish the download" in line
    assert not (tmp_path / "other.bundle").exists()


def test_an_adapter_is_merged_and_verified(adapter: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "lora.bundle"
    exported = call("export", CHECKPOINT, bundle, "--adapter", adapter)
    assert exported.returncode == 0, exported.stderr
    assert re.search(r"\nadapters +lora \(", call("inspect", bundle, light=True).stdout)
    few = tmp_path / "few"
    few.mkdir()
    entry = json.loads((IMAGE.parent / "prompts.json").read_text())[0]
    entry["questions"] = entry["questions"][:1]
    (few / "prompts.json").write_text(json.dumps([entry]))
    (few / "00.png").write_bytes(IMAGE.read_bytes())
    options = ("--max-new-tokens", "2", "--samples", few, "--adapter", adapter)
    verified = call("verify", bundle, CHECKPOINT, *options)
    assert verified.returncode == 0, verified.stdout + verified.stderr


def test_an_unusable_adapter_is_one_line(adapter: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "x.bundle"
    assert "adapter_config.json" in refused("export", CHECKPOINT, bundle, "--adapter", CHECKPOINT)
    other = peft.rename(adapter, tmp_path / "other", lambda key: key.replace(".0.", ".99."))
    line = refused("export", CHECKPOINT, bundle, "--adapter", other)
    assert "changes layers that this PaliGemma does not have" in line
    assert not bundle.exists()


def test_a_full_disk_is_noticed_before_writing(
    npz: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The size is known from shapes alone, whatever the tensors are computed from."""

    def write(*_: object) -> None:
        raise AssertionError("a graph was written")

    monkeypatch.setattr(exporter, "write_graph", write)
    needed = sum(path.stat().st_size for path in CHECKPOINT.glob("*.safetensors"))
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=needed))
    target = tmp_path / "x.bundle"
    for checkpoint, tokenizer in ((npz, CHECKPOINT), (CHECKPOINT, None)):
        with pytest.raises(OutputError, match="free some or choose another disk"):
            exporter.export(checkpoint, target, tokenizer=tokenizer, adapters=[adapter])
    assert not list(tmp_path.iterdir())


def test_help_shows_where_a_bundle_may_come_from() -> None:
    text = call("export", "--help").stdout
    for line in (
        "--adapter parts-lora\n",
        "--tokenizer paligemma_tokenizer.model\n",
        "NAME.npz.part0",
    ):
        assert line in text
    assert "--adapter parts-lora\n" in call("verify", "--help").stdout
