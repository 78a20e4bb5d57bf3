"""Measures the variants of a bundle, and transformers beside them, each in a process of its own.

    python -m samples.benchmark mix.bundle --against transformers --checkpoint paligemma-3b-mix-224
    python -m samples.benchmark mix.bundle --device cuda --batch 1,8,32 --cuda-graph \
        --against transformers --checkpoint paligemma-3b-mix-224

All read the same image and prompt, with the same number of threads. A table comes out, and all
that was measured as one line of JSON. Use the ratios: they are taken side by side.
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
from samples.benchmark.with_transformers import ITEMSIZES, MODES, numbers

Json = dict[str, Any]
_TRANSFORMERS = "samples.benchmark.with_transformers"
DTYPES = {"cpu": ["bfloat16", "float32"], "cuda": ["bfloat16"]}


def run(options: argparse.Namespace) -> Json:
    """Measure one after the other; what could not be measured says why under `error`."""
    results: dict[str, Json] = {}
    with tempfile.TemporaryDirectory() as folder:
        image = options.image or Path(folder, "drawn.png")
        if options.image is None:
            draw_image(image)
        for name, command in commands(options, image):
            print(f"measuring {name}", file=sys.stderr, flush=True)
            results[name] = measured(command)
            if options.image is None and "image" in results[name]:
                results[name]["image"] = "drawn"
            for problem in ("skipped", "error"):
                if problem in results[name]:
                    print(f"{problem}: {results[name][problem]}", file=sys.stderr, flush=True)
    add_ratios(results)
    return {"bundle": str(options.bundle), "threads": options.threads, "results": results}


def commands(options: argparse.Namespace, image: Path) -> Iterator[tuple[str, list[str]]]:
    """A name and the arguments of Python for all that is to be measured."""
    common = ["--image", str(image), f"--prompt={options.prompt}"]
    for name in ("steps", "runs", "threads"):
        common += [f"--{name}", str(getattr(options, name))]
    common += ["--batch", ",".join(map(str, options.batch))]
    yield from _originals(options, common)
    for variant in options.variant:
        bench = ["paligemma_edge.runtime.cli.main", "bench", str(options.bundle)]
        command = ["-m", *bench, "--variant", variant, *common, *_plan(options)]
        yield variant, command
        if options.cuda_graph:
            yield f"{variant}, recorded", [*command, "--cuda-graph", *_room(options)]


def _originals(
    options: argparse.Namespace, common: Sequence[str]
) -> Iterator[tuple[str, list[str]]]:
    if not options.against:
        return
    for dtype in options.dtype:
        original = [_TRANSFORMERS, str(options.checkpoint), "--dtype", dtype]
        if options.device == "cpu":
            yield f"transformers {dtype}", ["-m", *original, *common]
            continue
        for mode in options.mode:
            where = ["--device", options.device, "--mode", mode]
            yield f"transformers {dtype} {mode}", ["-m", *original, *where, *common]


def _plan(options: argparse.Namespace) -> list[str]:
    """What memory is sized for, where it was said."""
    given = {"--max-batch": options.max_batch, "--max-length": options.max_length}
    return [text for name, value in given.items() if value for text in (name, str(value))]


def _room(options: argparse.Namespace) -> list[str]:
    """Recorded steps need slots that are sized beforehand: all that are to be measured."""
    return [] if options.max_batch else ["--max-batch", str(max(options.batch))]


def measured(arguments: Sequence[str]) -> Json:
    """The last line of a process, which is JSON, or the last line that it complained with."""
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        found: Json = json.loads(done.stdout.splitlines()[-1])
        return found
    said = done.stderr.strip().splitlines() or ["nothing was said"]
    return {"error": f"{said[-1]} (exit code {done.returncode})"}


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m samples.benchmark", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--variant", nargs="+", help="default: all that are made for the device")
    parser.add_argument("--batch", type=numbers, default=[1], help="sequences, such as 1,8,32")
    parser.add_argument(
        "--cuda-graph", action="store_true", help="also with the steps recorded on a GPU"
    )
    parser.add_argument("--max-batch", type=int, help="of the variants, see `bench`")
    parser.add_argument("--max-length", type=int, help="likewise")
    parser.add_argument("--against", choices=["transformers"])
    parser.add_argument("--checkpoint", type=Path, help="what the bundle was exported from")
    parser.add_argument("--dtype", help="of transformers; default: bfloat16,float32, cuda bfloat16")
    parser.add_argument("--mode", default=",".join(MODES), help="of transformers on a GPU")
    parser.add_argument("--image", type=Path, help="default: an image that is drawn")
    parser.add_argument("--prompt", default=DEFAULT_PROMPT)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--runs", type=int, default=3, help="after one warm-up")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--json", type=Path, help="write the last line here too")
    options = parser.parse_args(arguments)
    options.dtype = options.dtype.split(",") if options.dtype else DTYPES[options.device]
    options.mode = options.mode.split(",")
    if problem := wrong(options):
        parser.error(problem)
    return options


def wrong(options: argparse.Namespace) -> str | None:
    """What would fail after the first process was waited for; the variants are filled in."""
    if problem := _misplaced(options):
        return problem
    for name, known in (("dtype", tuple(ITEMSIZES)), ("mode", MODES)):
        if odd := [given for given in getattr(options, name) if given not in known]:
            return f"--{name} {odd[0]!r}, wanted some of {','.join(known)}"
    for name in ("steps", "runs", "threads", "max_batch", "max_length"):
        if (value := getattr(options, name)) is not None and value < 1:
            return f"--{name.replace('_', '-')} is {value}, wanted 1 or more"
    try:
        options.variant = variants(Bundle.open(options.bundle), options.device, options.variant)
    except PaliGemmaError as error:
        return str(error)
    return None


def _misplaced(options: argparse.Namespace) -> str | None:
    """An option that wants another one, or a folder that is not there."""
    if options.against and not (options.checkpoint and options.checkpoint.is_dir()):
        return "--against transformers wants --checkpoint with the folder of the original"
    if options.json and not options.json.parent.is_dir():
        return f"--json {options.json}: there is no such folder"
    if options.cuda_graph and options.device == "cpu":
        return "--cuda-graph records steps on a GPU; give --device cuda with it"
    return None


def variants(bundle: Bundle, device: str, named: Sequence[str] | None) -> list[str]:
    """The variants that were named, or all that are made for the device."""
    manifest = bundle.manifest
    if named:
        return [choose_variant(manifest, "auto", name)[0] for name in named]
    return [name for name, variant in manifest.variants.items() if variant.device == device]


def main(arguments: list[str] | None = None) -> int:
    options = parse_args(arguments)
    found = run(options)
    line = json.dumps(found)
    if options.json:
        options.json.write_text(line + "\n", encoding="utf-8")
    told = header(found, options.prompt, options.steps, options.runs)
    print(told, table(found), line, sep="\n")
    return 1 if any("error" in result for result in found["results"].values()) else 0
