"""The fine-tuning sample on two steps of training: each way to ship runs, none is judged."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from paligemma_edge import PaliGemma
from samples.finetune.train import (
    PROMPT,
    FinetunePlan,
    ListCollator,
    shape_scenes,
    train,
    true_answer,
)
from samples.finetune.workflow import KNOWN, bundle_answerer, finetune
from samples.shapes.checkpoint_files import processor
from samples.shapes.evaluate import CHECKPOINT

LIBRARIES = "ignore:::transformers|peft|torch|accelerate"


def test_the_truth_lists_the_shapes_from_left_to_right() -> None:
    for scene in shape_scenes("held_out", 50):
        assert scene.word is None
        assert true_answer(scene).split(", ") == [f"{s.kind} {s.colour}" for s in scene.shapes]


def test_no_scene_is_both_trained_on_and_held_out() -> None:
    both = (*shape_scenes("train", 50), *shape_scenes("held_out", 50))
    assert len({scene.pixels.tobytes() for scene in both}) == 100


@pytest.mark.filterwarnings(LIBRARIES)
def test_the_loss_counts_the_answer_alone() -> None:
    encode, scenes = processor(CHECKPOINT), shape_scenes("train", 5)
    batch = ListCollator(encode)(scenes)
    for row, scene in enumerate(scenes):
        labels, types = batch["labels"][row], batch["token_type_ids"][row]
        assert encode.tokenizer.decode(labels[labels != -100]) == f"{true_answer(scene)}<eos>"
        assert (labels != -100).tolist() == types.bool().tolist()
        seen = batch["input_ids"][row][(types == 0) & (batch["attention_mask"][row] == 1)]
        assert encode.tokenizer.decode(seen).endswith(f"<image><bos>{PROMPT}\n")


@pytest.mark.filterwarnings(LIBRARIES)
def test_the_workflow(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = finetune(tmp_path, FinetunePlan(scenes=8, steps=2, batch=4, calibration=2), held_out=3)
    assert list(shares) == [
        *(f"{model}, transformers" for model in ("base", "adapter")),
        *(f"merged bundle, {variant}" for variant in ("cpu-fp32", "cpu-int8")),
        *(f"base and adapter, {variant}" for variant in ("cpu-fp32", "cpu-int8")),
    ]
    assert all(0 <= share <= 1 for pair in shares.values() for share in pair)
    new, known = shares["base, transformers"]
    assert new == 0 < known

    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert weights
    assert all("language_model" in name for name in weights)
    assert any(value.any() for name, value in weights.items() if "lora_B" in name)

    commands = re.findall(r"^\$ paligemma-edge (\w+)", capsys.readouterr().out, re.MULTILINE)
    assert commands == ["export", "quantize", "run", "export", "quantize", "adapter", "run"]
    merged, both = (
        json.loads((tmp_path / f"{name}.bundle" / "manifest.json").read_text())
        for name in ("merged", "both")
    )
    assert merged["source"]["adapters"].startswith("adapter (")
    assert "adapters" not in both["source"]
    assert list(both["adapters"]) == [PROMPT]
    for variant in ("cpu-fp32", "cpu-int8"):
        assert PaliGemma(tmp_path / "both.bundle", variant=variant).adapters == (PROMPT,)
    used: list[str | None] = []

    def answer(
        _: PaliGemma, requests: list[object], *, adapter: str | None, **__: int
    ) -> list[object]:
        used.append(adapter)
        return []

    monkeypatch.setattr(PaliGemma, "generate_batch", answer)
    for prompt in (PROMPT, KNOWN):
        bundle_answerer(tmp_path / "both.bundle", "cpu-fp32", PROMPT)([], prompt)
    assert used == [PROMPT, None]


@pytest.mark.filterwarnings(LIBRARIES)
def test_the_same_training_gives_the_same_adapter(tmp_path: Path) -> None:
    plan = FinetunePlan(scenes=4, steps=2, batch=2)
    files = []
    for name in ("one", "two"):
        train(tmp_path / name, plan)
        files.append((tmp_path / name / "adapter_model.safetensors").read_bytes())
    assert files[0] == files[1]
