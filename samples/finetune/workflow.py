"""Teaches the sample model a new task with a LoRA, and ships the result in two ways.

    python -m samples.finetune    # into build/finetune: the adapter and two bundles

The task is a list, "star red, ring blue", in a form that the base model does not know. `train.py`
trains the adapter. `export --adapter` merges it into a bundle, for a device that only lists.
`adapter` adds it to a bundle of the base model, for a device where each call chooses whether to
use it. The table shows the share of held-out images whose answer is right, word for word: for the
new task, and for one that the base model already knew.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeAlias

from paligemma_edge import PaliGemma
from paligemma_edge.runtime.cli.main import main as paligemma_edge
from samples.finetune.train import (
    PROMPT,
    FinetunePlan,
    generate,
    shape_scenes,
    train,
    true_answer,
)
from samples.shapes.evaluate import CHECKPOINT
from samples.shapes.scenes import Scene
from samples.shapes.tasks import caption_text

KNOWN = "caption en"
SMALL = "cpu-int8"

Answerer: TypeAlias = Callable[[Sequence[Scene], str], list[str]]  # scenes and a prompt to texts


def finetune(folder: Path, plan: FinetunePlan, held_out: int) -> dict[str, tuple[float, float]]:
    """Train, ship and score; returns the accuracy on both tasks for each way to answer."""
    scenes = shape_scenes("held_out", held_out)
    adapter, merged, both = (folder / name for name in ("adapter", "merged.bundle", "both.bundle"))
    start = time.monotonic()
    model = train(adapter, plan)
    print(f"trained in {time.monotonic() - start:.0f} s")
    original: Answerer = partial(generate, model)
    with model.disable_adapter():
        shares = {"base, transformers": accuracy(original, scenes)}
    shares["adapter, transformers"] = accuracy(original, scenes)

    questions = write_questions(folder / "questions", plan.calibration)
    command("export", CHECKPOINT, merged, "--adapter", adapter, "--overwrite")
    command("quantize", merged, SMALL, "--calibrate", questions)
    command("run", merged, PROMPT, questions / "00.png", "--variant", SMALL)
    for variant in ("cpu-fp32", SMALL):
        shares[f"merged bundle, {variant}"] = accuracy(bundle_answerer(merged, variant), scenes)

    command("export", CHECKPOINT, both, "--overwrite")
    command("quantize", both, SMALL, "--calibrate", questions)
    command("adapter", both, adapter, "--name", PROMPT)
    command("run", both, PROMPT, questions / "00.png", "--variant", SMALL, "--adapter", PROMPT)
    for variant in ("cpu-fp32", SMALL):
        switched = bundle_answerer(both, variant, PROMPT)
        shares[f"base and adapter, {variant}"] = accuracy(switched, scenes)
    return shares


def bundle_answerer(path: Path, variant: str, adapter: str | None = None) -> Answerer:
    """Answer with a bundle; an adapter is used for the new task only."""
    model = PaliGemma(path, variant=variant)

    def answer(scenes: Sequence[Scene], prompt: str) -> list[str]:
        requests = [(scene.image(), prompt) for scene in scenes]
        used = adapter if prompt == PROMPT else None
        generations = model.generate_batch(requests, max_new_tokens=40, adapter=used)
        return [generation.text for generation in generations]

    return answer


def accuracy(answer: Answerer, scenes: Sequence[Scene]) -> tuple[float, float]:
    """The share of answers that equal the truth: of the new task, and of the known one."""
    new, known = (
        sum(text == truth(scene) for text, scene in zip(texts, scenes, strict=True))
        for texts, truth in (
            (answer(scenes, PROMPT), true_answer),
            (answer(scenes, KNOWN), caption_text),
        )
    )
    return new / len(scenes), known / len(scenes)


def write_questions(folder: Path, number: int) -> Path:
    """Write training images and their prompts.json, which `quantize` calibrates with."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for place, scene in enumerate(shape_scenes("train", number)):
        scene.image().save(folder / f"{place:02d}.png")
        pairs = ((PROMPT, true_answer(scene)), (KNOWN, caption_text(scene)))
        questions = [{"prompt": prompt, "text": text} for prompt, text in pairs]
        entries.append({"image": f"{place:02d}.png", "questions": questions})
    (folder / "prompts.json").write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    return folder


def command(*arguments: str | Path) -> None:
    """Run `paligemma-edge` in this process, after printing the command as a shell takes it."""
    words = [str(argument) for argument in arguments]
    print(f"\n$ paligemma-edge {' '.join(words)}", flush=True)
    if code := paligemma_edge(words):
        raise SystemExit(code)


def main() -> None:
    """Run all of it, then print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m samples.finetune",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("build/finetune"),
        help="folder for the adapter and the bundles; default: %(default)s",
    )
    parser.add_argument(
        "--images",
        type=int,
        default=FinetunePlan.scenes,
        help="images to train on; default: %(default)s",
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=FinetunePlan.steps,
        help="training steps; default: %(default)s",
    )
    parser.add_argument(
        "--held-out",
        type=int,
        default=200,
        help="held-out images to score; default: %(default)s",
    )
    options = parser.parse_args()
    plan = FinetunePlan(options.images, options.steps)
    shares = finetune(options.out, plan, options.held_out)
    print(f"\n{'right answers':28}{PROMPT:>12}{KNOWN:>14}")
    for name, (new, known) in shares.items():
        print(f"{name:28}{new:>12.3f}{known:>14.3f}")
