"""The new task, and how an adapter learns it: peft's LoRA and transformers' Trainer.

Knows the sample model and its drawn scenes. Knows nothing of bundles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import (
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    Trainer,
    TrainingArguments,
    set_seed,
)

from samples.shapes.checkpoint_files import processor
from samples.shapes.evaluate import CHECKPOINT
from samples.shapes.scenes import Scene, Split, draw

PROMPT = "list"
DECODER = r".*language_model.*_proj"  # every linear layer of it; the vision tower stays as it is
FIRST = 2_000_000  # the sample model was trained on scenes with lower numbers


@dataclass(frozen=True)
class FinetunePlan:
    """How many scenes, steps and scenes per step to train with; how many scenes calibrate."""

    scenes: int = 2000
    steps: int = 500
    batch: int = 16
    calibration: int = 12


def shape_scenes(split: Split, number: int) -> list[Scene]:
    """The first scenes of a split, from FIRST on, that show shapes and no word."""
    drawn = (draw(split, place) for place in count(FIRST))
    return list(islice((scene for scene in drawn if scene.word is None), number))


def true_answer(scene: Scene) -> str:
    """The shapes from left to right, kind before colour."""
    return ", ".join(f"{shape.kind} {shape.colour}" for shape in scene.shapes)


@dataclass(frozen=True)
class ListCollator:
    """Scenes to a batch: the processor makes labels and token types of the `suffix`."""

    processor: PaliGemmaProcessor

    def __call__(self, scenes: Sequence[Scene]) -> dict[str, Tensor]:
        """The processor's tensors; only tokens of the answer count towards the loss."""
        return dict(
            self.processor(
                text=[f"<image>{PROMPT}"] * len(scenes),
                images=[[scene.image()] for scene in scenes],
                suffix=[true_answer(scene) for scene in scenes],
                padding="longest",
                return_tensors="pt",
            )
        )


def train(folder: Path, plan: FinetunePlan) -> Any:  # noqa: ANN401 - peft wraps any model
    """Save a trained adapter into `folder` and return its model; each run gives the same one."""
    set_seed(0)
    base = PaliGemmaForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(r=16, lora_alpha=32, target_modules=DECODER))
    model.print_trainable_parameters()
    arguments = TrainingArguments(
        output_dir=str(folder.with_name("runs")),
        max_steps=plan.steps,
        per_device_train_batch_size=plan.batch,
        learning_rate=3e-3,
        lr_scheduler_type="cosine",
        warmup_steps=plan.steps // 20,
        logging_steps=50,
        save_strategy="no",
        report_to="none",
        remove_unused_columns=False,  # the collator makes the columns
        label_names=["labels"],
        use_cpu=True,
        disable_tqdm=True,
    )
    dataset: Any = shape_scenes("train", plan.scenes)  # a list is enough of a Dataset
    Trainer(model, arguments, ListCollator(processor(CHECKPOINT)), dataset).train()
    model.save_pretrained(str(folder))
    return model.eval()


def generate(model: Any, scenes: Sequence[Scene], prompt: str) -> list[str]:  # noqa: ANN401
    """The greedy answers of a transformers model."""
    encode, answers = processor(CHECKPOINT), list[str]()
    for start in range(0, len(scenes), 25):
        images = [[scene.image()] for scene in scenes[start : start + 25]]
        texts = [f"<image>{prompt}"] * len(images)
        inputs = encode(text=texts, images=images, padding="longest", return_tensors="pt")
        inputs.pop("labels")
        with torch.inference_mode():
            ids = model.generate(**inputs, max_new_tokens=40, do_sample=False)
        ids = ids[:, inputs["input_ids"].shape[1] :]
        answers += encode.tokenizer.batch_decode(ids, skip_special_tokens=True)
    return answers
