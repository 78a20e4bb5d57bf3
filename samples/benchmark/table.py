"""What a benchmark found, as ratios and as a table; of several, as one table.

    python -m samples.benchmark.table one.json other.json

Ratios are to transformers on the same device in the same run: that in bfloat16 on a processor,
the eager and the compiled one on a GPU.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from paligemma_edge.runtime.diagnostics.timings import FIRST_TOKEN, READING

Json = dict[str, Any]
BASE = "transformers bfloat16"
COLUMNS = ("load s", "first s", *READING, "step ms", "tokens/s", "peak GB", "first ×", "step ×")
# On a GPU; between them the tokens in a second of each number of sequences.
CARD_COLUMNS = ("load s", "first ms", "vision ms", "prefill ms", "step ms")
CARD_LAST = ("host GB", "GPU GB", "first ×e", "step ×e", "first ×c", "step ×c")
MODES = ("eager", "compiled")
CARD_NOTE = (
    "GPU GB: less free on the GPU than before the load; ×e, ×c: of what transformers takes, "
    "eager and compiled"
)


def add_ratios(results: Mapping[str, Json]) -> None:
    """How long the first token and a step take, where transformers takes 1."""
    bases = {name: result for name, result in results.items() if name.startswith("transformers")}
    for result in results.values():
        if "reading" not in result:
            continue
        if result.get("device") != "cuda":
            if "reading" in (base := bases.get(BASE, {})):
                result["ratios"] = _ratios(result, base)
        elif found := _gpu_ratios(result, bases.values()):
            result["ratios"] = found


def _ratios(result: Json, base: Json) -> Json:
    return {
        FIRST_TOKEN: first_token(result) / first_token(base),
        "step": step(result) / step(base),
    }


def _gpu_ratios(result: Json, bases: Iterable[Json]) -> Json:
    """By mode, to the first that was measured in it: also the tokens in a second, by sequences."""
    found: Json = {}
    for base in bases:
        if "reading" in base and base["mode"] not in found:
            theirs = _throughput(base)
            ours = {n: speed / theirs[n] for n, speed in _throughput(result).items() if n in theirs}
            found[base["mode"]] = {**_ratios(result, base), "tokens_per_second": ours}
    return found


def _throughput(result: Json) -> dict[str, float]:
    """Tokens in a second, by the number of sequences."""
    return {str(each["slots"]): each["tokens_per_second"] for each in result["stepping"]}


def first_token(result: Json) -> float:
    return float(result["reading"][FIRST_TOKEN]["median"])


def step(result: Json) -> float:
    return float(result["stepping"][0]["seconds"]["median"])


def table(found: Json) -> str:
    """One row for each that was measured, then what was not and why."""
    results: dict[str, Json] = found["results"]
    measured = {name: result for name, result in results.items() if "reading" in result}
    on_gpu = any(result.get("device") == "cuda" for result in measured.values())
    batches = list(dict.fromkeys(n for result in measured.values() for n in _throughput(result)))
    columns: Sequence[str] = COLUMNS
    if on_gpu:
        columns = (*CARD_COLUMNS, *(f"tok/s at {n}" for n in batches), *CARD_LAST)
    width = max(map(len, results))
    rows = [f"{'':{width}}" + "".join(f"{column:>11}" for column in columns)]
    for name, result in measured.items():
        row = _gpu_cells(result, batches) if on_gpu else _cells(result)
        rows.append(f"{name:{width}}" + "".join(f"{cell:>11}" for cell in row))
    rows += [CARD_NOTE] if on_gpu else []
    for name, result in results.items():
        if name not in measured:
            rows.append(f"{name}: not measured, {result.get('skipped') or result['error']}")
    return "\n".join(rows)


def header(found: Json, prompt: str, steps: int, runs: int) -> str:
    """Where it was measured, and what was asked."""
    results = [result for result in found["results"].values() if "reading" in result]
    told = {key: value for result in results for key, value in result.items()}
    versions = [f"{k} {told[k]}" for k in ("onnxruntime", "torch", "transformers") if k in told]
    gpu = f"{told['gpu']}; " if "gpu" in told else ""
    return (
        f"{gpu}{told.get('processor', 'nothing was measured')}, {found['threads']} threads; "
        f"{', '.join(versions)}\n{prompt!r}, {told.get('prompt_tokens')} tokens after "
        f"{told.get('image_tokens')} of the image; medians of {runs} runs of {steps} steps\n"
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
    """The last columns are ratios of first token and step, to eager and then to compiled."""
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


def joined(files: Sequence[Path]) -> Json:
    """What several benchmarks wrote with --json, as of one; names begin with those of the files."""
    results: Json = {}
    for file in files:
        found = json.loads(file.read_text(encoding="utf-8"))
        results |= {f"{file.stem}: {name}": result for name, result in found["results"].items()}
    return {"results": results}


if __name__ == "__main__":
    print(table(joined([Path(name) for name in sys.argv[1:]])))
