"""The command `bench`: measure a variant in this process, print a table and one line of JSON."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from paligemma_edge.runtime.cli.device_options import add_device_options, load_options
from paligemma_edge.runtime.errors import OptionError

if TYPE_CHECKING:
    from paligemma_edge.runtime.diagnostics.benchmark import Benchmark
    from paligemma_edge.runtime.diagnostics.timings import Timings


_EPILOG = """\
examples:
  paligemma-edge bench mix.bundle --variant cpu-fp32
  paligemma-edge bench mix.bundle --batch 1,4,8 --image photo.jpg
"""


def add_bench(parser: argparse.ArgumentParser) -> None:
    """Describe the command to a parser."""
    parser.description = (
        "Measure load time, time to the first token, steps and memory; the last line is JSON."
    )
    parser.epilog = _EPILOG
    parser.add_argument("bundle", metavar="BUNDLE")
    add_device_options(parser)
    parser.add_argument("--image", metavar="FILE", help="default: a drawn image")
    parser.add_argument("--prompt", metavar="TEXT", default="answer en what is this?")
    parser.add_argument("--steps", type=int, default=32, metavar="N", help="tokens of an answer")
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="after one warm-up")
    parser.add_argument("--batch", default="1", metavar="N,N", help="slots, such as 1,4,8")
    parser.add_argument("--adapter", metavar="NAME", help="of the bundle; see inspect")
    parser.set_defaults(command=_bench)


def _bench(options: argparse.Namespace) -> int:
    """Measure a variant and print it; the last line is JSON."""
    start = time.perf_counter()
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
        batch_sizes=_batches(options.batch),
        adapter=options.adapter,
        **load_options(options),
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


def _describe(measured: Benchmark, imported: float) -> Iterator[str]:
    yield f"bundle        {measured.bundle}"
    adapter = f", adapter {measured.adapter}" if measured.adapter else ""
    yield f"variant       {measured.variant}, on {measured.device}{adapter}"
    yield f"processor     {measured.processor}, {measured.threads} threads"
    if measured.gpu is not None:
        yield f"GPU           {measured.gpu}"
    yield f"ONNX Runtime  {measured.onnxruntime}"
    yield f"image         {measured.image}, {measured.image_tokens} tokens"
    yield f"prompt        {measured.prompt!r}, {measured.prompt_tokens} tokens"
    yield f"runs          {measured.runs} of {measured.steps} steps, after a warm-up"
    yield ""
    yield f"{'milliseconds':<16}{'median':>10}{'minimum':>10}{'maximum':>10}{'tokens/s':>10}"
    yield f"{'import':<16}{imported * 1e3:>10.1f}"
    yield f"{'load':<16}{measured.load * 1e3:>10.1f}"
    for stage, timings in measured.reading.items():
        yield _row(stage.replace("_", " "), timings)
    for step in measured.stepping:
        name = f"step, {step.slots} slot{'s' if step.slots > 1 else ''}"
        yield f"{_row(name, step.seconds)}{step.tokens_per_second:>10.1f}"
    yield ""
    yield "megabytes"
    for part, size in measured.memory.items():
        name = "GPU" if part == "gpu" else part.replace("_", "-")
        remark = "  less free there than before the load" if part == "gpu" else ""
        yield f"{name:<16}{size / 1e6:>10.1f}{remark}"


def _row(name: str, timings: Timings) -> str:
    figures = (timings.median, min(timings.each), max(timings.each))
    return f"{name:<16}" + "".join(f"{seconds * 1e3:>10.1f}" for seconds in figures)
