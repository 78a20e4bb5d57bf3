"""The reference predictor: transformers' own classes, float32, eager attention, greedy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from transformers import PaliGemmaForConditionalGeneration, PaliGemmaProcessor

from samples.shapes.score import Predict


def load(folder: Path, *, longest: int = 100) -> Predict:
    """A predictor that answers all prompts on one picture as one batch."""
    processor = PaliGemmaProcessor.from_pretrained(folder)
    model: PaliGemmaForConditionalGeneration = PaliGemmaForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    model.train(False)

    def predict(image: Image.Image, prompts: Sequence[str]) -> list[str]:
        asked = [f"<image>{prompt}" for prompt in prompts]
        inputs = processor(
            text=asked, images=[image] * len(asked), padding="longest", return_tensors="pt"
        )
        inputs.pop("labels", None)
        with torch.inference_mode():
            ids = model.generate(  # type: ignore[misc]
                **inputs, max_new_tokens=longest, do_sample=False
            )
        answers = ids[:, inputs["input_ids"].shape[1] :]
        texts: list[str] = processor.tokenizer.batch_decode(answers, skip_special_tokens=True)
        return texts

    return predict
