"""The reference predictor: transformers in float32, eager attention, greedy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from transformers import PaliGemmaForConditionalGeneration, PaliGemmaProcessor

from samples.shapes import mask_decoder
from samples.shapes.scoring import ParsedAnswer, Predictor, parse_answer
from samples.shapes.tasks import ShapesQuestion


def load_predictor(folder: Path, *, max_new_tokens: int = 100) -> Predictor:
    """A predictor that answers all questions about one image as one batch."""
    decode = mask_decoder.load(folder / "vae-oid.npz")
    processor = PaliGemmaProcessor.from_pretrained(folder)
    model: PaliGemmaForConditionalGeneration = PaliGemmaForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    model.train(False)

    def predict(image: Image.Image, questions: Sequence[ShapesQuestion]) -> list[ParsedAnswer]:
        prompts = [f"<image>{question.prompt}" for question in questions]
        inputs = processor(
            text=prompts, images=[image] * len(prompts), padding="longest", return_tensors="pt"
        )
        inputs.pop("labels", None)
        with torch.inference_mode():
            ids = model.generate(  # type: ignore[misc]
                **inputs, max_new_tokens=max_new_tokens, do_sample=False
            )
        answers = ids[:, inputs["input_ids"].shape[1] :]
        texts: list[str] = processor.tokenizer.batch_decode(answers, skip_special_tokens=True)
        return [parse_answer(*pair, decode) for pair in zip(questions, texts, strict=True)]

    return predict
