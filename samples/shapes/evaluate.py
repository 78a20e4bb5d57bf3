"""Asks a predictor about held-out pictures and reports how often it is right.

    python -m samples.shapes.evaluate

`evaluate` takes any predictor: a function of a picture and prompts that returns a text per prompt.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from samples.shapes import mask_decoder
from samples.shapes.pictures import Picture, draw
from samples.shapes.score import MaskDecoder, Predict, score
from samples.shapes.tasks import TASKS, Question, ask, possible

CHECKPOINT = Path(__file__).with_name("checkpoint")
MEASURES = {
    "caption": "exact",
    "answer": "exact",
    "detect": "mean box IoU",
    "segment": "mean mask IoU",
    "ocr": "exact",
}


def exam(count: int) -> Iterator[tuple[Picture, list[Question]]]:
    """Held-out pictures, each with one question of every task that it allows."""
    for number in range(count):
        picture = draw("held_out", number)
        rng = np.random.default_rng([1, number])
        yield picture, [ask(picture, task, rng) for task in possible(picture)]


def evaluate(
    predict: Predict, decode: MaskDecoder, *, count: int = 200
) -> dict[str, dict[str, float]]:
    """For each task, how many questions there were and the mean score."""
    scores: dict[str, list[float]] = {task: [] for task in TASKS}
    for picture, questions in exam(count):
        texts = predict(picture.image(), [question.prompt for question in questions])
        for question, text in zip(questions, texts, strict=True):
            scores[question.task].append(score(question, picture, text, decode))
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
    """Score a checkpoint through transformers."""
    from samples.shapes.predictor import load

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--count", type=int, default=200)
    args = parser.parse_args()
    start = time.monotonic()
    decode = mask_decoder.load(args.checkpoint / "vae-oid.npz")
    results = evaluate(load(args.checkpoint), decode, count=args.count)
    print(report(results, time.monotonic() - start))


if __name__ == "__main__":
    main()
