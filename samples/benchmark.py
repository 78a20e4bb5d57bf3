"""Measures the variants of a bundle, and transformers beside them, each in a process of its own.

    python -m samples.benchmark mix.bundle --against transformers --checkpoint paligemma-3b-mix-224

All read the same picture and prompt, with the same number of threads. A table comes out, and all
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

from paligemma_edge.runtime.bench import DEFAULT_PROMPT, draw_picture
from paligemma_edge.runtime.bundle import Bundle
from paligemma_edge.runtime.device import choose, usable_cores
from paligemma_edge.runtime.errors import PaliGemmaError
from paligemma_edge.runtime.timings import FIRST_TOKEN, READING
from samples.benchmark_transformers import ITEMSIZES

Json = dict[str, Any]
BASE = "transformers bfloat16"
COLUMNS = ("load s", "first s", *READING, "step ms", "tokens/s", "peak GB", "first ×", "step ×")


def run(options: argparse.Namespace) -> Json:
    """Measure one after the other; what could not be measured says why under `error`."""
    results: dict[str, Json] = {}
    with tempfile.TemporaryDirectory() as folder:
        image = options.image or Path(folder, "drawn.png")
        if options.image is None:
            draw_picture(image)
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
    if options.against:
        for dtype in options.dtype:
            original = ["samples.benchmark_transformers", str(options.checkpoint)]
            yield f"transformers {dtype}", ["-m", *original, "--dtype", dtype, *common]
    for variant in options.variant:
        bench = ["paligemma_edge.runtime.cli", "bench", str(options.bundle)]
        yield variant, ["-m", *bench, "--variant", variant, *common]


def measured(arguments: Sequence[str]) -> Json:
    """The last line of a process, which is JSON, or the last line that it complained with."""
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        found: Json = json.loads(done.stdout.splitlines()[-1])
        return found
    said = done.stderr.strip().splitlines() or ["nothing was said"]
    return {"error": f"{said[-1]} (exit code {done.returncode})"}


def add_ratios(results: dict[str, Json]) -> None:
    """How long the first token and a step take, where transformers in bfloat16 takes 1."""
    base = results.get(BASE, {})
    if "reading" not in base:
        return
    for result in results.values():
        if "reading" in result:
            result["ratios"] = {
                FIRST_TOKEN: first_token(result) / first_token(base),
                "step": step(result) / step(base),
            }


def first_token(result: Json) -> float:
    return float(result["reading"][FIRST_TOKEN]["median"])


def step(result: Json) -> float:
    return float(result["stepping"][0]["seconds"]["median"])


def table(found: Json) -> str:
    """One row for each that was measured, then what was not and why."""
    results: dict[str, Json] = found["results"]
    width = max(map(len, results))
    rows = [f"{'':{width}}" + "".join(f"{column:>11}" for column in COLUMNS)]
    for name, result in results.items():
        if "reading" in result:
            rows.append(f"{name:{width}}" + "".join(f"{cell:>11}" for cell in cells(result)))
    for name, result in results.items():
        if "reading" not in result:
            rows.append(f"{name}: not measured, {result.get('skipped') or result['error']}")
    return "\n".join(rows)


def header(found: Json, options: argparse.Namespace) -> str:
    """Where it was measured, and what was asked."""
    results = [result for result in found["results"].values() if "reading" in result]
    told = {key: value for result in results for key, value in result.items()}
    versions = [f"{k} {told[k]}" for k in ("onnxruntime", "torch", "transformers") if k in told]
    return (
        f"{told.get('processor', 'nothing was measured')}, {options.threads} threads; "
        f"{', '.join(versions)}\n{options.prompt!r}, {told.get('prompt_tokens')} tokens after "
        f"{told.get('image_tokens')} of the picture; medians of {options.runs} runs of "
        f"{options.steps} steps\n"
    )


def cells(result: Json) -> list[str]:
    ratios, peak = result.get("ratios"), result["memory"].get("peak")
    return [
        f"{result['load']:.2f}",
        f"{first_token(result):.3f}",
        *(f"{result['reading'][stage]['median']:.3f}" for stage in READING),
        f"{step(result) * 1e3:.1f}",
        f"{result['stepping'][0]['tokens_per_second']:.1f}",
        f"{peak / 1e9:.2f}" if peak else "-",
        *(f"{ratios[name]:.2f}" if ratios else "-" for name in (FIRST_TOKEN, "step")),
    ]


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m samples.benchmark", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--variant", nargs="+", help="default: all that are made for the CPU")
    parser.add_argument("--against", choices=["transformers"])
    parser.add_argument("--checkpoint", type=Path, help="what the bundle was exported from")
    parser.add_argument("--dtype", default="bfloat16,float32", help="of transformers")
    parser.add_argument("--image", type=Path, help="default: a picture that is drawn")
    parser.add_argument("--prompt", default=DEFAULT_PROMPT)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--runs", type=int, default=3, help="after one warm-up")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--json", type=Path, help="write the last line here too")
    options = parser.parse_args(arguments)
    options.dtype = options.dtype.split(",")
    if problem := wrong(options):
        parser.error(problem)
    return options


def wrong(options: argparse.Namespace) -> str | None:
    """What would fail after the first process was waited for; the variants are filled in."""
    if options.against and not (options.checkpoint and options.checkpoint.is_dir()):
        return "--against transformers wants --checkpoint with the folder of the original"
    if odd := [dtype for dtype in options.dtype if dtype not in ITEMSIZES]:
        return f"--dtype {odd[0]!r}, wanted some of {','.join(ITEMSIZES)}"
    if options.json and not options.json.parent.is_dir():
        return f"--json {options.json}: there is no such folder"
    for name in ("steps", "runs", "threads"):
        if getattr(options, name) < 1:
            return f"--{name} is {getattr(options, name)}, wanted 1 or more"
    try:
        options.variant = variants(Bundle.open(options.bundle), options.variant)
    except PaliGemmaError as error:
        return str(error)
    return None


def variants(bundle: Bundle, named: Sequence[str] | None) -> list[str]:
    """The variants that were named, or all that are made for the CPU."""
    manifest = bundle.manifest
    if named:
        return [choose(manifest, "auto", name)[0] for name in named]
    return [name for name, variant in manifest.variants.items() if variant.device == "cpu"]


def main(arguments: list[str] | None = None) -> int:
    options = parse_args(arguments)
    found = run(options)
    line = json.dumps(found)
    if options.json:
        options.json.write_text(line + "\n", encoding="utf-8")
    print(header(found, options), table(found), line, sep="\n")
    return 1 if any("error" in result for result in found["results"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
