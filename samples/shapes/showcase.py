"""Writes held-out pictures with prompts and the truth: the dozen that ship, or any others.

python -m samples.shapes.showcase --out build/exam --first 0 --count 200
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from samples.shapes.pictures import Picture, draw
from samples.shapes.tasks import Question, ask, possible

FIRST, COUNT = 100_000, 12  # far from the pictures of the exam
PICTURES = Path(__file__).parents[1] / "pictures"


def write(folder: Path, first: int = FIRST, count: int = COUNT) -> None:
    """NN.png, NN-masks.png (pixel value i + 1 for shape i) and prompts.json."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = [_write_one(folder, f"{place:02d}", first + place) for place in range(count)]
    (folder / "prompts.json").write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")


def _write_one(folder: Path, name: str, number: int) -> dict[str, Any]:
    picture = draw("held_out", number)
    rng = np.random.default_rng([3, number])
    picture.image().save(folder / f"{name}.png", optimize=True)
    Image.fromarray(picture.owner).save(folder / f"{name}-masks.png", optimize=True)
    questions = [ask(picture, task, rng) for task in possible(picture)]
    return {
        "picture": f"{name}.png",
        "masks": f"{name}-masks.png",
        "questions": [_entry(picture, question) for question in questions],
    }


def _entry(picture: Picture, question: Question) -> dict[str, Any]:
    """Words are a `text`; else `things`: label, pixel box y0 x0 y1 x1 and value in the masks."""
    head = {"task": question.task, "prompt": question.prompt}
    if not question.things:
        return {**head, "text": question.text}
    things = [
        {"label": t.label, "box": list(picture.shapes[t.index].box), "mask": t.index + 1}
        for t in question.things
    ]
    return {**head, "things": things}


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=PICTURES)
    parser.add_argument("--first", type=int, default=FIRST, help="number of the first picture")
    parser.add_argument("--count", type=int, default=COUNT)
    options = parser.parse_args()
    write(options.out, options.first, options.count)


if __name__ == "__main__":
    main()
