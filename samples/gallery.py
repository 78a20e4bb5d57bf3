"""A sheet of overlays: what the sample model finds in the sample images.

python -m samples.gallery build/shapes.bundle samples/shapes/overlays.jpg
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from PIL import Image

from paligemma_edge.runtime import ObjectResult, PaliGemma

IMAGES = Path(__file__).with_name("images")
CHOSEN = ("00.png", "01.png", "02.png", "04.png")
TASKS = ("detect", "segment")  # a row of the sheet for each
SIDE, GAP = 336, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--variant")
    options = parser.parse_args()
    model = PaliGemma(options.bundle, variant=options.variant)
    sheet(model).save(options.output, quality=92, subsampling=0)


def sheet(model: PaliGemma) -> Image.Image:
    """The overlays, tasks below each other and images side by side."""
    step = SIDE + GAP
    paper = Image.new("RGB", (len(CHOSEN) * step - GAP, len(TASKS) * step - GAP), "white")
    for column, name in enumerate(CHOSEN):
        for row, task in enumerate(TASKS):
            paper.paste(_overlay(model, name, task), (column * step, row * step))
    return paper


def _overlay(model: PaliGemma, name: str, task: str) -> Image.Image:
    entries = json.loads((IMAGES / "prompts.json").read_text())
    (questions,) = (entry["questions"] for entry in entries if entry["image"] == name)
    (prompt,) = (question["prompt"] for question in questions if question["task"] == task)
    result = model.answer(IMAGES / name, prompt)
    assert isinstance(result, ObjectResult) and result.image is not None
    return result.draw(result.image.resize((SIDE, SIDE), Image.Resampling.LANCZOS))


if __name__ == "__main__":
    main()
