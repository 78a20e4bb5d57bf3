"""Measures the cost of a grammar relative to a step, on a bundle of any size.

    python -m samples.benchmark.grammar_cost mix.bundle --variant cpu-int4

Tokens are chosen from the same logits with and without a grammar, in turn; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from paligemma_edge import PaliGemma
from paligemma_edge.runtime.engine.logits import HostRow
from paligemma_edge.runtime.generation.sampling import Greedy
from paligemma_edge.runtime.generation.select_token import select_token
from paligemma_edge.runtime.grammar.base import EndState, State
from paligemma_edge.runtime.grammar.objects import ObjectGrammar

Result = TypeVar("Result")
GRAMMARS = {
    "detect, two labels": ObjectGrammar(("cat", "dog"), masks=False),
    "segment, two labels": ObjectGrammar(("cat", "dog"), masks=True),
    "detect, own labels": ObjectGrammar(None, masks=False),
    "segment, own labels": ObjectGrammar(None, masks=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m samples.benchmark.grammar_cost", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--variant", help="default: the one that a bundle is opened with")
    parser.add_argument("--steps", type=int, default=64, help="default: %(default)s")
    options = parser.parse_args()
    model = PaliGemma(options.bundle, variant=options.variant)
    rows, seconds = run_steps(model, options.steps)
    step = statistics.median(seconds)
    report = {"step_ms": step * 1e3, "vocabulary": model._loaded.engine.config.vocab_size}
    print(f"a step at a vocabulary of {report['vocabulary']:,}: {report['step_ms']:.1f} ms")
    for name, grammar in GRAMMARS.items():
        cost = grammar_seconds(rows, grammar.start(model._loaded.encoder))
        report[name] = cost / step
        print(f"{name}: {cost * 1e6:+.0f} us per token, {cost / step:+.2%} of a step")
    print(json.dumps(report))


def run_steps(model: PaliGemma, count: int) -> tuple[list[HostRow], list[float]]:
    """The logits of greedy steps after a grey image and a prompt, and the seconds of each step."""
    size, answer_ids = model.bundle.manifest.image.size, model.bundle.manifest.tokenizer.image_id
    engine, ids = model._loaded.engine, model._loaded.encoder.encode("detect cat ; dog", 1)
    features = engine.project(engine.encode(np.zeros((1, 3, size, size), np.float32)))
    cache = engine.cache(1, engine.config.image_tokens + len(ids) + count)
    rows = [HostRow(engine.prefill(cache, 0, features, ids).whole.copy(), answer_ids)]
    seconds = []
    stepper = engine.stepper(cache, 1)
    for _ in range(count):
        start = time.perf_counter()
        row = stepper.step([rows[-1].best])[0]
        seconds.append(time.perf_counter() - start)
        rows.append(HostRow(row.whole.copy(), answer_ids))
    return rows, seconds


def grammar_seconds(rows: list[HostRow], start: State) -> float:
    """Mean extra seconds per token with a grammar; an answer that ends starts again."""
    greedy, state, extra = Greedy(), start, []
    for place, row in enumerate(rows):

        def free(row: HostRow = row, place: int = place) -> int:
            return select_token(greedy, row, None, place)

        def constrained(row: HostRow = row, place: int = place, state: State = state) -> State:
            return state.after(select_token(greedy, row, state.allowed, place))

        # The second call finds the row in the CPU's cache: each way is second half of the time.
        if place % 2:
            seconds, next_state = _timed(constrained)
            free_seconds, _ = _timed(free)
        else:
            free_seconds, _ = _timed(free)
            seconds, next_state = _timed(constrained)
        extra.append(seconds - free_seconds)
        state = start if isinstance(next_state, EndState) else next_state
    return statistics.mean(extra)


def _timed(work: Callable[[], Result]) -> tuple[float, Result]:
    """The seconds that a function takes, and its result."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


if __name__ == "__main__":
    main()
