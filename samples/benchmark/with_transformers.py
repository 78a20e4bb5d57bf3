"""Measures transformers on a checkpoint, in the stages that `paligemma-edge bench` measures.

    python -m samples.benchmark.with_transformers CHECKPOINT --dtype bfloat16 --image photo.png
    python -m samples.benchmark.with_transformers CHECKPOINT --device cuda --mode compiled \
        --max-batch-size 1,8,32 --image photo.png

The output is one line of JSON. The model is called as a user calls it; hooks measure the vision
tower and the projector, and prefill is the rest of the call, with the choice of the first token.
A step is one call with the previous tokens and the cache.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from paligemma_edge.runtime.device.cuda.driver import Gpu, find_gpu
from paligemma_edge.runtime.diagnostics.timings import StepTimings, Timings, until_first_token
from paligemma_edge.runtime.errors import DeviceError
from paligemma_edge.runtime.system.linux import available_memory, process_memory, processor_name
from paligemma_edge.runtime.timing import Stopwatch
from samples.benchmark.transformers_model import MODES, TransformersModel

ITEMSIZES = {"bfloat16": 2, "float16": 2, "float32": 4}


def measure(options: argparse.Namespace, gpu: Gpu | None) -> dict[str, Any]:
    """Prefill and step `runs` times after a warm-up; `gpu` as it was before, None for a CPU."""
    start = time.perf_counter()
    import torch
    import transformers
    from transformers import PaliGemmaForConditionalGeneration  # noqa: F401 - a lazy import

    imported = time.perf_counter() - start
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    start = time.perf_counter()
    model = TransformersModel.load(
        options.checkpoint, options.dtype, options.device, compiled=options.mode == "compiled"
    )
    load = time.perf_counter() - start
    watches: list[Stopwatch] = []
    steps: dict[int, list[float]] = {slots: [] for slots in options.max_batch_size}
    with model.no_gradients():
        for _ in range(options.runs + 1):
            model.watch = Stopwatch()
            prompt = model.prefill(options.image, options.prompt, options.steps)
            watches.append(model.watch)
            for slots, seconds in steps.items():
                seconds.append(model.step_seconds(prompt, slots, options.steps))
    stepping = [StepTimings(slots, Timings(tuple(each[1:]))) for slots, each in steps.items()]
    return {
        "import": round(imported, 6),
        "checkpoint": str(options.checkpoint),
        "dtype": options.dtype,
        "mode": options.mode,
        "attention": model.model.config._attn_implementation,
        "device": options.device,
        "threads": torch.get_num_threads(),
        "processor": processor_name(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "image": str(options.image),
        "prompt": options.prompt,
        "prompt_tokens": prompt.prompt_tokens,
        "steps": options.steps,
        "runs": options.runs,
        "load": round(load, 6),
        "reading": {k: v.to_json() for k, v in until_first_token(watches[1:]).items()},
        "stepping": [timings.to_json() for timings in stepping],
        "memory": {**process_memory(), **({} if gpu is None else gpu_memory(gpu))},
        **({} if gpu is None else {"gpu": gpu.name}),
    }


def gpu_memory(before: Gpu) -> dict[str, int]:
    """Bytes: `gpu` as `paligemma-edge bench` counts it, and torch's own peak."""
    import torch

    return {
        "gpu": before.free_bytes - find_gpu().free_bytes,
        "gpu_allocated_peak": torch.cuda.max_memory_allocated(),
    }


def shortage(parameters: int, dtype: str, available: int | None) -> str | None:
    """Why a model does not fit into memory; None if it does, or if free memory is unknown."""
    needed = parameters * ITEMSIZES[dtype]
    if available is None or needed <= available:
        return None
    return (
        f"{parameters / 1e9:.2f} billion parameters in {dtype} take {needed / 1e9:.1f} GB, "
        f"{available / 1e9:.1f} GB are free"
    )


def count_parameters(checkpoint: Path) -> int:
    """The number of stored parameters, from the headers; no tensor is read."""
    from safetensors import safe_open

    total = 0
    for path in checkpoint.glob("*.safetensors"):
        with safe_open(path, "numpy") as file:
            for name in file.keys():  # noqa: SIM118 - a handle, not a mapping
                size = 1
                for side in file.get_slice(name).get_shape():
                    size *= side
                total += size
    return total


def batch_sizes(text: str) -> list[int]:
    """Batch sizes separated by commas, each once; ValueError for anything else."""
    sizes = [int(part) for part in text.split(",")]
    if min(sizes) < 1:
        raise ValueError(f"{text!r} has a number below 1")
    return list(dict.fromkeys(sizes))


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m samples.benchmark.with_transformers",
        description=(__doc__ or "").split("\n")[0],
    )
    parser.add_argument("checkpoint", type=Path, help="folder of a Hugging Face checkpoint")
    parser.add_argument("--dtype", choices=ITEMSIZES, default="bfloat16")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--mode", choices=MODES, default="eager")
    parser.add_argument(
        "--max-batch-size", type=batch_sizes, default=[1], help="sequences per step, such as 1,8,32"
    )
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--prompt", default="answer en what is this?")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, help="default: torch's own")
    options = parser.parse_args(arguments)
    for name in ("steps", "runs", "threads"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name} is {value}, wanted 1 or more")
    return options


def main() -> None:
    options = parse_args()
    try:
        gpu = find_gpu() if options.device == "cuda" else None
    except DeviceError as error:
        raise SystemExit(str(error)) from None
    free = available_memory() if gpu is None else gpu.free_bytes
    reason = shortage(count_parameters(options.checkpoint), options.dtype, free)
    print(json.dumps({"skipped": reason} if reason else measure(options, gpu)))


if __name__ == "__main__":
    main()
