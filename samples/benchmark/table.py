"""The results of one or several benchmarks as a table, with ratios to transformers.

    python -m samples.benchmark.table one.json other.json

Ratios are to transformers on the same device in the same run: in bfloat16 on a CPU, eager and
compiled on a GPU.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from paligemma_edge.runtime.diagnostics.timings import FIRST_TOKEN, READING
from samples.benchmark.transformers_model import MODES

Json = dict[str, Any]
BASE = "transformers bfloat16"
COLUMNS = ("load s", "first s", *READING, "step ms", "tokens/s", "peak GB", "first ×", "step ×")
# On a GPU; between the two are tokens per second at each batch size.
GPU_COLUMNS = ("load s", "first ms", "vision ms", "prefill ms", "step ms")
GPU_LAST_COLUMNS = ("host GB", "GPU GB", "first ×e", "step ×e", "first ×c", "step ×c")
GPU_NOTE = (
    "GPU GB: less free on the GPU than before the load; ×e, ×c: time relative to transformers, "
    "eager and compiled"
)


def add_ratios(results: Mapping[str, Json]) -> None:
    """Add to each result the time of first token and step relative to transformers."""
    bases = {name: result for name, result in results.items() if name.startswith("transformers")}
    for result in results.values():
        if "reading" not in result:
            continue
        if result.get("device") != "cuda":
            if "reading" in (base := bases.get(BASE, {})):
                result["ratios"] = _ratios(result, base)
        elif ratios := _gpu_ratios(result, bases.values()):
            result["ratios"] = ratios


def _ratios(result: Json, base: Json) -> Json:
    return {
        FIRST_TOKEN: first_token(result) / first_token(base),
        "step": step(result) / step(base),
    }


def _gpu_ratios(result: Json, bases: Iterable[Json]) -> Json:
    """Ratios by mode, to its first base; also of tokens per second, by batch size."""
    ratios: Json = {}
    for base in bases:
        if "reading" in base and base["mode"] not in ratios:
            theirs = _throughput(base)
            ours = {n: speed / theirs[n] for n, speed in _throughput(result).items() if n in theirs}
            ratios[base["mode"]] = {**_ratios(result, base), "tokens_per_second": ours}
    return ratios


def _throughput(result: Json) -> dict[str, float]:
    """Tokens per second by batch size."""
    return {str(each["batch_size"]): each["tokens_per_second"] for each in result["stepping"]}


def first_token(result: Json) -> float:
    return float(result["reading"][FIRST_TOKEN]["median"])


def step(result: Json) -> float:
    return float(result["stepping"][0]["seconds"]["median"])


def table(report: Json) -> str:
    """One row per measurement, then a line for each that is missing, with the reason."""
    results: dict[str, Json] = report["results"]
    measured = {name: result for name, result in results.items() if "reading" in result}
    on_gpu = any(result.get("device") == "cuda" for result in measured.values())
    batches = list(dict.fromkeys(n for result in measured.values() for n in _throughput(result)))
    columns: Sequence[str] = COLUMNS
    if on_gpu:
        columns = (*GPU_COLUMNS, *(f"tok/s at {n}" for n in batches), *GPU_LAST_COLUMNS)
    width = max(map(len, results))
    rows = [f"{'':{width}}" + "".join(f"{column:>11}" for column in columns)]
    for name, result in measured.items():
        row = _gpu_cells(result, batches) if on_gpu else _cells(result)
        rows.append(f"{name:{width}}" + "".join(f"{cell:>11}" for cell in row))
    rows += [GPU_NOTE] if on_gpu else []
    for name, result in results.items():
        if name not in measured:
            rows.append(f"{name}: not measured, {result.get('skipped') or result['error']}")
    return "\n".join(rows)


def header(report: Json, prompt: str, steps: int, runs: int) -> str:
    """The machine, the versions and the prompt of a benchmark."""
    results = [result for result in report["results"].values() if "reading" in result]
    fields = {key: value for result in results for key, value in result.items()}
    versions = [f"{k} {fields[k]}" for k in ("onnxruntime", "torch", "transformers") if k in fields]
    gpu = f"{fields['gpu']}; " if "gpu" in fields else ""
    return (
        f"{gpu}{fields.get('processor', 'nothing was measured')}, {report['threads']} threads; "
        f"{', '.join(versions)}\n{prompt!r}, {fields.get('prompt_tokens')} tokens after "
        f"{fields.get('image_tokens')} of the image; medians of {runs} runs of {steps} steps\n"
    )


def _cells(result: Json) -> list[str]:
    ratios = result.get("ratios")
    return [
        f"{result['load']:.2f}",
        f"{first_token(result):.3f}",
        *(f"{result['reading'][stage]['median']:.3f}" for stage in READING),
        f"{step(result) * 1e3:.1f}",
        f"{result['stepping'][0]['tokens_per_second']:.1f}",
        _gigabytes(result, "peak"),
        *(f"{ratios[name]:.2f}" if ratios else "-" for name in (FIRST_TOKEN, "step")),
    ]


def _gpu_cells(result: Json, batches: Sequence[str]) -> list[str]:
    """The last columns are ratios of first token and step, first to eager, then to compiled."""
    reading, throughput = result["reading"], _throughput(result)
    ratios = [result.get("ratios", {}).get(mode) for mode in MODES]
    return [
        f"{result['load']:.2f}",
        *(f"{reading[stage]['median'] * 1e3:.2f}" for stage in (FIRST_TOKEN, "vision", "prefill")),
        f"{step(result) * 1e3:.2f}",
        *(f"{throughput[n]:.0f}" if n in throughput else "-" for n in batches),
        *(_gigabytes(result, part) for part in ("peak", "gpu")),
        *(f"{to[n]:.2f}" if to else "-" for to in ratios for n in (FIRST_TOKEN, "step")),
    ]


def _gigabytes(result: Json, part: str) -> str:
    size = result["memory"].get(part)
    return f"{size / 1e9:.2f}" if size else "-"


def merge(files: Sequence[Path]) -> Json:
    """The --json files of several benchmarks as one report; each name starts with its file's."""
    results: Json = {}
    for file in files:
        report = json.loads(file.read_text(encoding="utf-8"))
        results |= {f"{file.stem}: {name}": result for name, result in report["results"].items()}
    return {"results": results}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m samples.benchmark.table", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("files", type=Path, nargs="+", help="what benchmarks wrote with --json")
    print(table(merge(parser.parse_args().files)))


if __name__ == "__main__":
    main()
