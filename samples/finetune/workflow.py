"""Teaches the sample model a new task with a LoRA, and ships what it learned in both ways.

    python -m samples.finetune    # into build/finetune: the adapter and two bundles

The task is a list, "star red, ring blue", in a form that the base does not know. `train.py`
trains the adapter. `export --adapter` merges it into a bundle, for a device that lists and does
nothing else. `adapter` puts it beside the base, for one where each call says whether it lists. The
table tells how many answers about held-out images are right, word for word: of the new task, and
of one that the base knew.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeAlias

from paligemma_edge.runtime import PaliGemma
from paligemma_edge.runtime.cli.main import main as paligemma_edge
from samples.finetune import train as finetune_train
from samples.finetune.train import PROMPT, Plan, shapes, truth
from samples.shapes.evaluate import CHECKPOINT
from samples.shapes.scenes import Scene
from samples.shapes.tasks import describe

KNOWN = "caption en"
SMALL = "cpu-int8"

Ask: TypeAlias = Callable[[Sequence[Scene], str], list[str]]


def finetune(folder: Path, plan: Plan, asked: int) -> dict[str, tuple[float, float]]:
    """Train, ship and ask; returns the two shares of right answers of each way to answer."""
    held_out = shapes("held_out", asked)
    adapter, merged, both = (folder / name for name in ("adapter", "merged.bundle", "both.bundle"))
    start = time.monotonic()
    model = finetune_train.train(adapter, plan)
    print(f"trained in {time.monotonic() - start:.0f} s")
    original: Ask = partial(finetune_train.ask, model)
    with model.disable_adapter():
        shares = {"base, transformers": rights(original, held_out)}
    shares["adapter, transformers"] = rights(original, held_out)

    questions = write_questions(folder / "questions", plan.calibration)
    command("export", CHECKPOINT, merged, "--adapter", adapter, "--overwrite")
    command("quantize", merged, SMALL, "--calibrate", questions)
    command("run", merged, PROMPT, questions / "00.png", "--variant", SMALL)
    for variant in ("cpu-fp32", SMALL):
        shares[f"merged bundle, {variant}"] = rights(through(merged, variant), held_out)

    command("export", CHECKPOINT, both, "--overwrite")
    command("quantize", both, SMALL, "--calibrate", questions)
    command("adapter", both, adapter, "--name", PROMPT)
    command("run", both, PROMPT, questions / "00.png", "--variant", SMALL, "--adapter", PROMPT)
    for variant in ("cpu-fp32", SMALL):
        shares[f"base and adapter, {variant}"] = rights(through(both, variant, PROMPT), held_out)
    return shares


def through(path: Path, variant: str, adapter: str | None = None) -> Ask:
    """The answers of a bundle; an adapter beside the base is for the new task alone."""
    model = PaliGemma(path, variant=variant)

    def ask(scenes: Sequence[Scene], prompt: str) -> list[str]:
        requests = [(scene.image(), prompt) for scene in scenes]
        with_it = adapter if prompt == PROMPT else None
        answers = model.generate_batch(requests, max_new_tokens=40, adapter=with_it)
        return [answer.text for answer in answers]

    return ask


def rights(ask: Ask, scenes: Sequence[Scene]) -> tuple[float, float]:
    """Which shares of the answers are the truth: of the new task, and of the known one."""
    new, known = (
        sum(answer == true(scene) for answer, scene in zip(answers, scenes, strict=True))
        for answers, true in ((ask(scenes, PROMPT), truth), (ask(scenes, KNOWN), describe))
    )
    return new / len(scenes), known / len(scenes)


def write_questions(folder: Path, number: int) -> Path:
    """Images of the training and a prompts.json: what `quantize` is calibrated with."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for place, scene in enumerate(shapes("train", number)):
        scene.image().save(folder / f"{place:02d}.png")
        pairs = ((PROMPT, truth(scene)), (KNOWN, describe(scene)))
        questions = [{"prompt": prompt, "text": text} for prompt, text in pairs]
        entries.append({"image": f"{place:02d}.png", "questions": questions})
    (folder / "prompts.json").write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    return folder


def command(*arguments: str | Path) -> None:
    """Run `paligemma-edge`, and show how a terminal would be asked for it."""
    words = [str(argument) for argument in arguments]
    print(f"\n$ paligemma-edge {' '.join(words)}", flush=True)
    if code := paligemma_edge(words):
        raise SystemExit(code)


def main() -> None:
    """The whole story, then the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("build/finetune"))
    parser.add_argument("--images", type=int, default=Plan.scenes, help="of the training")
    parser.add_argument("--steps", type=int, default=Plan.steps)
    parser.add_argument("--asked", type=int, default=200, help="held-out images")
    options = parser.parse_args()
    plan = Plan(options.images, options.steps)
    shares = finetune(options.out, plan, options.asked)
    print(f"\n{'right answers':28}{PROMPT:>12}{KNOWN:>14}")
    for name, (new, known) in shares.items():
        print(f"{name:28}{new:>12.3f}{known:>14.3f}")
