"""Makes a sheet of overlays: what the sample model detects in the sample images.

python -m samples.gallery build/shapes.bundle samples/shapes/overlays.jpg
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from PIL import Image

from paligemma_edge import ObjectResult, PaliGemma

IMAGES = Path(__file__).with_name("images")
COLUMNS = 4  # the first images in which something is there for each task
TASKS = ("detect", "segment")  # one row of the sheet each
SIDE, GAP = 336, 8


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m samples.gallery", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("bundle", type=Path, help="a bundle of the sample model")
    parser.add_argument("output", type=Path, help="the image to write")
    parser.add_argument("--variant", help="default: the one that a bundle is opened with")
    options = parser.parse_args()
    model = PaliGemma(options.bundle, variant=options.variant)
    draw_sheet(model).save(options.output, quality=92, subsampling=0)


def draw_sheet(model: PaliGemma) -> Image.Image:
    """The overlays, one row per task and one column per image."""
    step = SIDE + GAP
    sheet = Image.new("RGB", (COLUMNS * step - GAP, len(TASKS) * step - GAP), "white")
    for column, (name, prompts) in enumerate(islice(_shown(), COLUMNS)):
        for row, prompt in enumerate(prompts):
            sheet.paste(_overlay(model, name, prompt), (column * step, row * step))
    return sheet


def _shown() -> Iterator[tuple[str, list[str]]]:
    """The images, each with a prompt for each task, where all of them have true objects."""
    for entry in json.loads((IMAGES / "prompts.json").read_text()):
        asked = {question["task"]: question for question in entry["questions"]}
        if all(asked.get(task, {}).get("objects") for task in TASKS):
            yield entry["image"], [asked[task]["prompt"] for task in TASKS]


def _overlay(model: PaliGemma, name: str, prompt: str) -> Image.Image:
    result = model.run(IMAGES / name, prompt)
    assert isinstance(result, ObjectResult) and result.image is not None
    return result.draw(result.image.resize((SIDE, SIDE), Image.Resampling.LANCZOS))


if __name__ == "__main__":
    main()
