"""What a grammar costs beside a step, on a bundle of any size.

    python -m samples.benchmark.grammar_cost mix.bundle --variant cpu-int4

The same logits are chosen from with and without a grammar, in turn; the last line is JSON.
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

from paligemma_edge.runtime import PaliGemma
from paligemma_edge.runtime.engine.logits import HostRow
from paligemma_edge.runtime.generation.sampling import Greedy
from paligemma_edge.runtime.generation.select_token import select_token
from paligemma_edge.runtime.grammar.base import EndState, State
from paligemma_edge.runtime.grammar.objects import ObjectGrammar

Result = TypeVar("Result")
GRAMMARS = {
    "detect, two labels": ObjectGrammar(("cat", "dog"), masks=False),
    "segment, two labels": ObjectGrammar(("cat", "dog"), masks=True),
    "detect, any label": ObjectGrammar(None, masks=False),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--variant")
    parser.add_argument("--steps", type=int, default=64)
    options = parser.parse_args()
    model = PaliGemma(options.bundle, variant=options.variant)
    rows, seconds = run_steps(model, options.steps)
    step = statistics.median(seconds)
    found = {"step_ms": step * 1e3, "vocabulary": model.engine.config.vocab_size}
    print(f"a step at a vocabulary of {found['vocabulary']:,}: {found['step_ms']:.1f} ms")
    for name, grammar in GRAMMARS.items():
        cost = grammar_seconds(rows, grammar.start(model.encoder))
        found[name] = cost / step
        print(f"{name}: {cost * 1e6:.0f} us a token more, {cost / step:.2%} of a step")
    print(json.dumps(found))


def run_steps(model: PaliGemma, count: int) -> tuple[list[HostRow], list[float]]:
    """The logits of greedy steps behind a grey image, and the seconds of each step."""
    size, spoken = model.bundle.manifest.image.size, model.bundle.manifest.tokenizer.image_id
    engine, ids = model.engine, model.encoder.encode("detect cat ; dog", 1)
    features = engine.project(engine.encode(np.zeros((1, 3, size, size), np.float32)))
    cache = engine.cache(1, engine.config.image_tokens + len(ids) + count)
    rows = [HostRow(engine.prefill(cache, 0, features, ids).whole.copy(), spoken)]
    seconds = []
    stepper = engine.stepper(cache, 1)
    for _ in range(count):
        start = time.perf_counter()
        row = stepper.step([rows[-1].best])[0]
        seconds.append(time.perf_counter() - start)
        rows.append(HostRow(row.whole.copy(), spoken))
    return rows, seconds


def grammar_seconds(rows: list[HostRow], start: State) -> float:
    """Mean seconds that a token takes more with a grammar; an answer that ends begins anew."""
    greedy, state, more = Greedy(), start, []
    for place, row in enumerate(rows):

        def free(row: HostRow = row, place: int = place) -> int:
            return select_token(greedy, row, None, place)

        def bound(row: HostRow = row, place: int = place, state: State = state) -> State:
            return state.after(select_token(greedy, row, state.allowed, place))

        # Who comes second finds the row in the processor's cache: each is second half the time.
        if place % 2:
            seconds, following = _timed(bound)
            others, _ = _timed(free)
        else:
            others, _ = _timed(free)
            seconds, following = _timed(bound)
        more.append(seconds - others)
        state = start if isinstance(following, EndState) else following
    return statistics.mean(more)


def _timed(work: Callable[[], Result]) -> tuple[float, Result]:
    """Seconds of some work, and what came of it."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


if __name__ == "__main__":
    main()
