"""Measures the variants of a bundle, and transformers, each in a process of its own.

    python -m samples.benchmark mix.bundle --against transformers --checkpoint paligemma-3b-mix-224
    python -m samples.benchmark mix.bundle --device cuda --max-batch-size 1,8,32 --cuda-graph \
        --against transformers --checkpoint paligemma-3b-mix-224

All get the same image and prompt, and the same number of threads. The output is a table, then
all measurements as one line of JSON. Compare by the ratios: both sides come from the same run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from paligemma_edge.runtime.bundle.bundle import Bundle
from paligemma_edge.runtime.diagnostics.benchmark import DEFAULT_PROMPT, draw_image
from paligemma_edge.runtime.errors import PaliGemmaError
from paligemma_edge.runtime.loading.variants import choose_variant
from paligemma_edge.runtime.system.linux import usable_cores
from samples.benchmark.table import add_ratios, header, table
from samples.benchmark.transformers_model import MODES
from samples.benchmark.with_transformers import ITEMSIZES, batch_sizes

Json = dict[str, Any]
_TRANSFORMERS = "samples.benchmark.with_transformers"
DTYPES = {"cpu": ["bfloat16", "float32"], "cuda": ["bfloat16"]}


def run(options: argparse.Namespace) -> Json:
    """Measure one after the other; a measurement that failed has the reason as `error`."""
    results: dict[str, Json] = {}
    with tempfile.TemporaryDirectory() as folder:
        image = options.image or Path(folder, "drawn.png")
        if options.image is None:
            draw_image(image)
        for name, command in commands(options, image):
            print(f"measuring {name}", file=sys.stderr, flush=True)
            results[name] = run_json(command)
            if options.image is None and "image" in results[name]:
                results[name]["image"] = "drawn"
            for reason in ("skipped", "error"):
                if reason in results[name]:
                    print(f"{reason}: {results[name][reason]}", file=sys.stderr, flush=True)
    add_ratios(results)
    return {"bundle": str(options.bundle), "threads": options.threads, "results": results}


def commands(options: argparse.Namespace, image: Path) -> Iterator[tuple[str, list[str]]]:
    """Name and Python arguments of each measurement."""
    common = ["--image", str(image), f"--prompt={options.prompt}"]
    for name in ("steps", "runs", "threads"):
        common += [f"--{name}", str(getattr(options, name))]
    common += ["--max-batch-size", ",".join(map(str, options.max_batch_size))]
    yield from _transformers_commands(options, common)
    for variant in options.variant:
        bench = ["paligemma_edge", "bench", str(options.bundle)]
        command = ["-m", *bench, "--variant", variant, *common, *_memory_plan(options)]
        yield variant, command
        if options.cuda_graph:
            yield f"{variant}, recorded", [*command, "--cuda-graph"]


def _transformers_commands(
    options: argparse.Namespace, common: Sequence[str]
) -> Iterator[tuple[str, list[str]]]:
    if not options.against:
        return
    for dtype in options.dtype:
        command = [_TRANSFORMERS, str(options.checkpoint), "--dtype", dtype]
        if options.device == "cpu":
            yield f"transformers {dtype}", ["-m", *command, *common]
            continue
        for mode in options.mode:
            how = ["--device", options.device, "--mode", mode]
            yield f"transformers {dtype} {mode}", ["-m", *command, *how, *common]


def _memory_plan(options: argparse.Namespace) -> list[str]:
    """The length that keys and values are allocated for, where it is given."""
    return ["--max-length", str(options.max_length)] if options.max_length else []


def run_json(arguments: Sequence[str]) -> Json:
    """Run Python; the JSON of its last line of output, or its last line on stderr as `error`."""
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        result: Json = json.loads(done.stdout.splitlines()[-1])
        return result
    lines = done.stderr.strip().splitlines() or ["no message on stderr"]
    return {"error": f"{lines[-1]} (exit code {done.returncode})"}


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m samples.benchmark", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("bundle", type=Path, help="the bundle to measure")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--variant", nargs="+", help="default: all variants made for the device")
    parser.add_argument(
        "--max-batch-size",
        type=batch_sizes,
        default=[1],
        metavar="N,N",
        help="answers at a time: numbers, each of which is measured, such as 1,8,32",
    )
    parser.add_argument(
        "--cuda-graph", action="store_true", help="also measure with steps recorded as CUDA graphs"
    )
    parser.add_argument("--max-length", type=int, help="memory plan of the variants, see `bench`")
    parser.add_argument("--against", choices=["transformers"], help="measure this too")
    parser.add_argument(
        "--checkpoint", type=Path, help="the checkpoint that the bundle was exported from"
    )
    parser.add_argument(
        "--dtype", help="of transformers; default: bfloat16,float32 on a CPU, bfloat16 on a GPU"
    )
    parser.add_argument(
        "--mode", default=",".join(MODES), help="of transformers on a GPU; default: %(default)s"
    )
    parser.add_argument("--image", type=Path, help="default: a drawn image")
    parser.add_argument("--prompt", default=DEFAULT_PROMPT)
    parser.add_argument("--steps", type=int, default=16, help="tokens generated in each run")
    parser.add_argument("--runs", type=int, default=3, help="runs after one warm-up")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--json", type=Path, help="also write the last line to this file")
    options = parser.parse_args(arguments)
    options.dtype = options.dtype.split(",") if options.dtype else DTYPES[options.device]
    options.mode = options.mode.split(",")
    if problem := find_problem(options):
        parser.error(problem)
    return options


def find_problem(options: argparse.Namespace) -> str | None:
    """A mistake in the options that would show only after the first run; fills in the variants."""
    if problem := _missing_option(options):
        return problem
    for name, known in (("dtype", tuple(ITEMSIZES)), ("mode", MODES)):
        if unknown := [value for value in getattr(options, name) if value not in known]:
            return f"--{name} {unknown[0]!r}, wanted some of {','.join(known)}"
    for name in ("steps", "runs", "threads", "max_length"):
        if (value := getattr(options, name)) is not None and value < 1:
            return f"--{name.replace('_', '-')} is {value}, wanted 1 or more"
    try:
        options.variant = variants(Bundle.open(options.bundle), options.device, options.variant)
    except PaliGemmaError as error:
        return str(error)
    return None


def _missing_option(options: argparse.Namespace) -> str | None:
    """An option that needs another one, or a folder that does not exist."""
    if options.against and not (options.checkpoint and options.checkpoint.is_dir()):
        return "--against transformers needs --checkpoint with the folder of the checkpoint"
    if options.json and not options.json.parent.is_dir():
        return f"--json {options.json}: its folder does not exist; create it, or give another path"
    if options.cuda_graph and options.device == "cpu":
        return "--cuda-graph records steps on a GPU; give --device cuda with it"
    return None


def variants(bundle: Bundle, device: str, names: Sequence[str] | None) -> list[str]:
    """The named variants, or all that are made for the device."""
    manifest = bundle.manifest
    if names:
        return [choose_variant(manifest, "auto", name)[0] for name in names]
    return [name for name, variant in manifest.variants.items() if variant.device == device]


def main(arguments: list[str] | None = None) -> int:
    options = parse_args(arguments)
    report = run(options)
    line = json.dumps(report)
    if options.json:
        options.json.write_text(line + "\n", encoding="utf-8")
    print(header(report, options.prompt, options.steps, options.runs))
    print(table(report), line, sep="\n")
    return 1 if any("error" in result for result in report["results"].values()) else 0
