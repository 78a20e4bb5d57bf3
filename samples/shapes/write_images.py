"""Writes held-out images with prompts and the truth: the twelve that ship, or any others.

python -m samples.shapes.write_images --out build/exam --first 0 --count 200
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from samples.shapes.scenes import Scene, draw
from samples.shapes.tasks import OBJECT_TASKS, ShapesQuestion, make_question, possible_tasks

FIRST, COUNT = 100_000, 12  # far from the scenes that `evaluate` scores
IMAGES = Path(__file__).parents[1] / "images"


def write(folder: Path, first: int = FIRST, count: int = COUNT) -> None:
    """NN.png, .NN-masks.png (pixel value i + 1 for shape i) and prompts.json.

    The masks are hidden, so that a run over the folder does not ask about them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    entries = [_write_one(folder, f"{place:02d}", first + place) for place in range(count)]
    (folder / "prompts.json").write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")


def _write_one(folder: Path, name: str, number: int) -> dict[str, Any]:
    scene = draw("held_out", number)
    rng = np.random.default_rng([3, number])
    scene.image().save(folder / f"{name}.png", optimize=True)
    Image.fromarray(scene.owner).save(folder / f".{name}-masks.png", optimize=True)
    questions = [make_question(scene, task, rng) for task in possible_tasks(scene)]
    return {
        "image": f"{name}.png",
        "masks": f".{name}-masks.png",
        "questions": [_entry(scene, question) for question in questions],
    }


def _entry(scene: Scene, question: ShapesQuestion) -> dict[str, Any]:
    """Words as `text`, or `objects`: label, box y0 x0 y1 x1 in pixels, value in the masks.

    There are no objects where nothing in the scene is what the prompt asks for.
    """
    head = {"task": question.task, "prompt": question.prompt}
    if question.task not in OBJECT_TASKS:
        return {**head, "text": question.text}
    objects = [
        {"label": t.label, "box": list(scene.shapes[t.index].box), "mask": t.index + 1}
        for t in question.objects
    ]
    return {**head, "objects": objects}


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(
        prog="python -m samples.shapes.write_images", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "--out", type=Path, default=IMAGES, help="folder to write; default: the shipped one"
    )
    parser.add_argument(
        "--first", type=int, default=FIRST, help="number of the first scene; default: %(default)s"
    )
    parser.add_argument("--count", type=int, default=COUNT, help="how many; default: %(default)s")
    options = parser.parse_args()
    write(options.out, options.first, options.count)


if __name__ == "__main__":
    main()
