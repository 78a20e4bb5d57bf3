"""The command `bench`: measure a variant in this process, print a table and one line of JSON."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from paligemma_edge.runtime.cli.device_options import (
    add_bundle,
    add_device_options,
    add_max_length,
    load_options,
)
from paligemma_edge.runtime.cli.progress import shown_progress
from paligemma_edge.runtime.errors import OptionError
from paligemma_edge.runtime.system.console import Console

if TYPE_CHECKING:
    from paligemma_edge.runtime.diagnostics.benchmark import Benchmark
    from paligemma_edge.runtime.diagnostics.timings import Timings

_OF_LIBRARY = ("prompt", "steps", "runs")  # whose defaults are those of `benchmark`

_EPILOG = """\
examples:
  paligemma-edge bench mix.bundle --variant cpu-int8
  paligemma-edge bench mix.bundle --max-batch-size 1,4,8 --image photo.jpg
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Describe the command to a parser."""
    parser.usage = "%(prog)s [options] BUNDLE"
    parser.description = (
        "Measure the time to load, to the first token and of each step, and memory. The last line\n"
        "is JSON."
    )
    parser.epilog = _EPILOG
    add_bundle(parser)
    group = parser.add_argument_group("what is measured")
    group.add_argument("--image", metavar="FILE", help="image to ask about; default: a drawn one")
    group.add_argument(
        "--prompt",
        metavar="TEXT",
        help="what is asked about the image; default: answer en what is this?",
    )
    group.add_argument("--steps", type=int, metavar="N", help="tokens of an answer; default: 32")
    group.add_argument(
        "--runs", type=int, metavar="N", help="runs after one to warm up; default: 5"
    )
    group.add_argument(
        "--max-batch-size",
        dest="batch_sizes",
        default="1",
        metavar="N,N",
        help="answers at a time: numbers, each of which is measured, such as 1,4,8; default: 1",
    )
    group.add_argument(
        "--adapter", metavar="NAME", help="answer with this adapter of the bundle; see inspect"
    )
    add_max_length(add_device_options(parser))
    parser.set_defaults(command=_bench)


def _bench(options: argparse.Namespace) -> int:
    """Measure a variant and print it; the last line is JSON."""
    start = time.perf_counter()
    from paligemma_edge.runtime.diagnostics.benchmark import benchmark

    imported, given = time.perf_counter() - start, vars(options)
    with shown_progress() as progress:
        measured = benchmark(
            options.bundle,
            options.device,
            options.variant,
            image=options.image,
            batch_sizes=_batches(options.batch_sizes),
            adapter=options.adapter,
            progress=progress,
            **{name: given[name] for name in _OF_LIBRARY if given[name] is not None},
            **load_options(options),
        )
    console = Console.standard()
    console.print(*_describe(measured, imported))
    console.exact(json.dumps({"import": round(imported, 6), **measured.to_json()}) + "\n")
    return 0


def _batches(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise OptionError(
            f"--max-batch-size is {text!r}, wanted numbers with commas between, such as 1,4,8"
        ) from None


def _describe(measured: Benchmark, imported: float) -> Iterator[str]:
    yield f"bundle        {measured.bundle}"
    adapter = f", adapter {measured.adapter}" if measured.adapter else ""
    yield f"variant       {measured.variant}, on {measured.device}{adapter}"
    yield f"processor     {measured.processor}, {measured.threads} threads"
    if measured.gpu is not None:
        yield f"GPU           {measured.gpu}"
    yield f"ONNX Runtime  {measured.onnxruntime}"
    width, height = measured.image_size
    yield f"image         {measured.image}, {width} x {height}, {measured.image_tokens} tokens"
    yield f"prompt        {measured.prompt!r}, {measured.prompt_tokens} tokens"
    yield f"runs          {measured.runs} of {measured.steps} steps, after a warm-up"
    yield ""
    yield f"{'milliseconds':<16}{'median':>10}{'minimum':>10}{'maximum':>10}{'tokens/s':>10}"
    yield f"{'import':<16}{imported * 1e3:>10.1f}"
    yield f"{'load':<16}{measured.load * 1e3:>10.1f}"
    for stage, timings in measured.reading.items():
        yield _row(stage.replace("_", " "), timings)
    for step in measured.stepping:
        name = "step" if step.batch_size == 1 else f"step, batch {step.batch_size}"
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
