"""Asks a predictor about held-out images and reports how often it is right.

    python -m samples.shapes.evaluate                          # the checkpoint, by transformers
    python -m samples.shapes.evaluate --bundle shapes.bundle   # a bundle, by its typed calls

`evaluate` takes any predictor: a function of an image and questions that returns their answers.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from samples.shapes.scenes import Scene, draw
from samples.shapes.scoring import Predict, score
from samples.shapes.tasks import TASKS, ShapesQuestion, ask, possible

CHECKPOINT = Path(__file__).with_name("checkpoint")
MEASURES = {
    "caption": "exact",
    "answer": "exact",
    "detect": "mean box IoU",
    "segment": "mean mask IoU",
    "ocr": "exact",
}


def exam(count: int) -> Iterator[tuple[Scene, list[ShapesQuestion]]]:
    """Held-out images, each with one question of every task that it allows."""
    for number in range(count):
        scene = draw("held_out", number)
        rng = np.random.default_rng([1, number])
        yield scene, [ask(scene, task, rng) for task in possible(scene)]


def evaluate(predict: Predict, *, count: int = 200) -> dict[str, dict[str, float]]:
    """For each task, how many questions there were and the mean score."""
    scores: dict[str, list[float]] = {task: [] for task in TASKS}
    for scene, questions in exam(count):
        answers = predict(scene.image(), questions)
        for question, answer in zip(questions, answers, strict=True):
            scores[question.task].append(score(question, scene, answer))
    return {
        task: {"questions": len(got), "score": float(np.mean(got))}
        for task, got in scores.items()
        if got
    }


def report(results: dict[str, dict[str, float]], seconds: float) -> str:
    """A table, and the same as one line of JSON."""
    rows = [f"{'task':10}{'questions':>10}{'score':>9}  measure"]
    for task, result in results.items():
        rows.append(
            f"{task:10}{result['questions']:>10.0f}{result['score']:>9.4f}  {MEASURES[task]}"
        )
    return "\n".join([*rows, f"{seconds:.0f} s", json.dumps(results)])


def main() -> None:
    """Score a checkpoint through transformers, or a bundle through the runtime."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--bundle", type=Path, help="score this instead of the checkpoint")
    parser.add_argument("--variant", help="of the bundle")
    parser.add_argument("--count", type=int, default=200)
    args = parser.parse_args()
    start = time.monotonic()
    predict = _bundle(args) if args.bundle else _checkpoint(args)
    print(report(evaluate(predict, count=args.count), time.monotonic() - start))


def _checkpoint(args: argparse.Namespace) -> Predict:
    from samples.shapes.transformers_predictor import load

    return load(args.checkpoint)


def _bundle(args: argparse.Namespace) -> Predict:
    from paligemma_edge.runtime import PaliGemma
    from samples.shapes.runtime_predictor import through

    return through(PaliGemma(args.bundle, variant=args.variant))


if __name__ == "__main__":
    main()
