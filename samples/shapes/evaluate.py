"""Scores a predictor on held-out images and reports how often it is right.

    python -m samples.shapes.evaluate                          # the checkpoint, in transformers
    python -m samples.shapes.evaluate --bundle shapes.bundle   # a bundle, with its typed calls

`evaluate` takes any predictor: a function from an image and questions to their answers.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from samples.shapes.scenes import Scene, draw
from samples.shapes.scoring import ParsedAnswer, Predictor, labels_are_right, score
from samples.shapes.tasks import ShapesQuestion, make_question, possible_tasks

CHECKPOINT = Path(__file__).with_name("checkpoint")
MEASURES = {
    "caption": "exact",
    "answer": "exact",
    "detect": "mean box IoU",
    "segment": "mean mask IoU",
    "ocr": "exact",
    "two labels": "each on a shape that has it",
    "absent": "no objects",
}


def held_out_questions(count: int) -> Iterator[tuple[Scene, list[ShapesQuestion]]]:
    """Held-out scenes, each with one question for every task that it allows."""
    for number in range(count):
        scene = draw("held_out", number)
        rng = np.random.default_rng([1, number])
        yield scene, [make_question(scene, task, rng) for task in possible_tasks(scene)]


def evaluate(predict: Predictor, *, count: int = 200) -> dict[str, dict[str, float]]:
    """The number of questions and the mean score, by MEASURES.

    Questions for two labels, and those for nothing that is there, also have rows of their own.
    """
    scores: dict[str, list[float]] = {name: [] for name in MEASURES}
    for scene, questions in held_out_questions(count):
        answers = predict(scene.image(), questions)
        for question, answer in zip(questions, answers, strict=True):
            for name, value in _scores(question, scene, answer):
                scores[name].append(value)
    return {
        name: {"questions": len(values), "score": float(np.mean(values))}
        for name, values in scores.items()
        if values
    }


def _scores(
    question: ShapesQuestion, scene: Scene, answer: ParsedAnswer
) -> Iterator[tuple[str, float]]:
    """What an answer counts, and where."""
    value = score(question, scene, answer)
    yield question.task, value
    if isinstance(answer, str):
        return
    if len(question.labels) == 2:
        yield "two labels", float(labels_are_right(question, scene, answer))
    if not question.objects:
        yield "absent", value


def report(results: dict[str, dict[str, float]], seconds: float) -> str:
    """A table, and the same as one line of JSON."""
    rows = [f"{'':10}{'questions':>10}{'score':>9}  measure"]
    for name, result in results.items():
        rows.append(
            f"{name:10}{result['questions']:>10.0f}{result['score']:>9.4f}  {MEASURES[name]}"
        )
    return "\n".join([*rows, f"{seconds:.0f} s", json.dumps(results)])


def main() -> None:
    """Score a checkpoint in transformers, or a bundle in the runtime."""
    parser = argparse.ArgumentParser(
        prog="python -m samples.shapes.evaluate", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "--checkpoint", type=Path, default=CHECKPOINT, help="to run in transformers"
    )
    parser.add_argument("--bundle", type=Path, help="score this one instead, by the runtime")
    parser.add_argument("--variant", help="of the bundle; default: the one that it is opened with")
    parser.add_argument(
        "--count", type=int, default=200, help="held-out images; default: %(default)s"
    )
    args = parser.parse_args()
    start = time.monotonic()
    predict = _bundle_predictor(args) if args.bundle else _checkpoint_predictor(args)
    print(report(evaluate(predict, count=args.count), time.monotonic() - start))


def _checkpoint_predictor(args: argparse.Namespace) -> Predictor:
    from samples.shapes.transformers_predictor import load_predictor

    return load_predictor(args.checkpoint)


def _bundle_predictor(args: argparse.Namespace) -> Predictor:
    from paligemma_edge import PaliGemma
    from samples.shapes.runtime_predictor import make_predictor

    return make_predictor(PaliGemma(args.bundle, variant=args.variant))


if __name__ == "__main__":
    main()
