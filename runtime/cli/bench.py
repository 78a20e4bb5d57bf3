"""What `bench` does: measure a variant in this process, print a table and one line of JSON."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from paligemma_edge.runtime.errors import OptionError

if TYPE_CHECKING:
    from paligemma_edge.runtime.diagnostics.benchmark import Benchmark
    from paligemma_edge.runtime.diagnostics.timings import Timings


def bench(options: argparse.Namespace) -> int:
    """Measure a variant and print what was found; the last line is JSON."""
    start = time.perf_counter()
    from paligemma_edge.runtime.cli.device_options import opening
    from paligemma_edge.runtime.diagnostics.benchmark import benchmark

    imported = time.perf_counter() - start
    measured = benchmark(
        options.bundle,
        options.device,
        options.variant,
        image=options.image,
        prompt=options.prompt,
        steps=options.steps,
        runs=options.runs,
        batches=_batches(options.batch),
        adapter=options.adapter,
        **opening(options),
    )
    print("\n".join(_describe(measured, imported)))
    print(json.dumps({"import": round(imported, 6), **measured.to_json()}))
    return 0


def _batches(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise OptionError(
            f"--batch is {text!r}, wanted numbers of slots with commas between, such as 1,4,8"
        ) from None


def _describe(found: Benchmark, imported: float) -> Iterator[str]:
    yield f"bundle        {found.bundle}"
    adapter = f", adapter {found.adapter}" if found.adapter else ""
    yield f"variant       {found.variant}, on {found.device}{adapter}"
    yield f"processor     {found.processor}, {found.threads} threads"
    if found.gpu is not None:
        yield f"GPU          {found.gpu}"
    yield f"ONNX Runtime  {found.onnxruntime}"
    yield f"image       {found.image}, {found.image_tokens} tokens"
    yield f"prompt        {found.prompt!r}, {found.prompt_tokens} tokens"
    yield f"runs          {found.runs} of {found.steps} steps, after a warm-up"
    yield ""
    yield f"{'milliseconds':<16}{'median':>10}{'minimum':>10}{'maximum':>10}{'tokens/s':>10}"
    yield f"{'import':<16}{imported * 1e3:>10.1f}"
    yield f"{'load':<16}{found.load * 1e3:>10.1f}"
    for stage, timings in found.reading.items():
        yield _row(stage.replace("_", " "), timings)
    for step in found.stepping:
        name = f"step, {step.slots} slot{'s' if step.slots > 1 else ''}"
        yield f"{_row(name, step.seconds)}{step.tokens_per_second:>10.1f}"
    yield ""
    yield "megabytes"
    for part, size in found.memory.items():
        told = "  less free there than before the load" if part == "gpu" else ""
        yield f"{part.replace('_', '-'):<16}{size / 1e6:>10.1f}{told}"


def _row(name: str, timings: Timings) -> str:
    figures = (timings.median, min(timings.each), max(timings.each))
    return f"{name:<16}" + "".join(f"{seconds * 1e3:>10.1f}" for seconds in figures)
