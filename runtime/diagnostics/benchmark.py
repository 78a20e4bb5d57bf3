"""How fast a variant is on this device, and how much memory it takes.

Knows what is measured, and what it reports. Knows nothing of how a graph is run.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np
from PIL import Image

from paligemma_edge.runtime.bundle.local import open_bundle
from paligemma_edge.runtime.device.cuda.check import Gpu, find_gpu
from paligemma_edge.runtime.device.device import check_present
from paligemma_edge.runtime.device.ort import ort
from paligemma_edge.runtime.diagnostics.measure import (
    RepeatedPrompt,
    measure_reading,
    measure_stepping,
)
from paligemma_edge.runtime.diagnostics.timings import StepTimings, Timings
from paligemma_edge.runtime.errors import OptionError
from paligemma_edge.runtime.images.load import load_image
from paligemma_edge.runtime.loading.loaded_model import LoadedModel, load_model
from paligemma_edge.runtime.loading.options import LoadOptions
from paligemma_edge.runtime.loading.variants import DeviceName, choose_variant
from paligemma_edge.runtime.progress import Progress, no_progress
from paligemma_edge.runtime.system.linux import process_memory, processor_name
from paligemma_edge.runtime.validation import check_count

DEFAULT_PROMPT = "answer en what is this?"  # 8 tokens of PaliGemma's own tokenizer
DEFAULT_STEPS = 32
DEFAULT_RUNS = 5
_MOST_SLOTS = 1024


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """What was measured, of what and where. Times are seconds, memory is bytes.

    `memory` is the process's after the last run. On a GPU `gpu` is there too: by how much its
    free memory shrank from before the variant was opened, whichever process took it; what CUDA
    takes for any process at all is left out.
    """

    bundle: str
    variant: str
    adapter: str | None
    device: str
    threads: int
    processor: str
    onnxruntime: str
    image: str
    image_size: tuple[int, int]  # width and height in pixels; reading it takes its share
    prompt: str
    prompt_tokens: int  # with <bos> and the newline
    image_tokens: int
    steps: int
    runs: int
    load: float  # digests of the files and sessions of the graphs; no import
    reading: Mapping[str, Timings]  # preprocess, vision, projector, prefill, first_token
    stepping: tuple[StepTimings, ...]
    memory: Mapping[str, int]  # resident, anonymous, file_backed, peak, GPU
    gpu: str | None = None  # its name, where one was used

    def to_json(self) -> dict[str, Any]:
        """Plain lists and dicts, in the order of the fields; no GPU where none was used."""
        fields = {name: value for name, value in vars(self).items() if value is not None}
        return {
            **fields,
            "image_size": list(self.image_size),
            "load": round(self.load, 6),
            "reading": {name: timings.to_json() for name, timings in self.reading.items()},
            "stepping": [timings.to_json() for timings in self.stepping],
            "memory": dict(self.memory),
        }


def benchmark(
    bundle: str | os.PathLike[str],
    device: DeviceName = "auto",
    variant: str | None = None,
    *,
    image: str | os.PathLike[str] | None = None,
    prompt: str = DEFAULT_PROMPT,
    steps: int = DEFAULT_STEPS,
    runs: int = DEFAULT_RUNS,
    batch_sizes: Sequence[int] = (1,),
    adapter: str | None = None,
    progress: Progress = no_progress,
    **load: Unpack[LoadOptions],
) -> Benchmark:
    """Open a variant, answer `runs` times after a warm-up, and step in each of `batch_sizes`.

    Without an `image` one is drawn. Call it in a fresh process where load time and peak memory
    matter. OptionError, ImageError or PromptError say what cannot be measured.
    """
    steps, runs = check_count("steps", steps), check_count("runs", runs)
    sizes = [check_count("batch size", size, _MOST_SLOTS) for size in dict.fromkeys(batch_sizes)]
    if not sizes:
        raise OptionError("batch_sizes is empty, wanted at least one batch size")
    _plan_for(sizes, load)
    with _image_file(image) as path:
        width, height = load_image(path).size  # an error comes before the model is loaded
        gpu = _gpu(bundle, device, variant)
        progress("opening the bundle", 0, 1)
        start = time.perf_counter()
        model = load_model(bundle, device, variant, **load)
        seconds = time.perf_counter() - start
        question = RepeatedPrompt(model.with_adapter(adapter), path, prompt, steps)
        progress("measuring the way to the first token", 0, 1)
        read, reading = measure_reading(question, runs)
        progress("measuring steps", 0, 1)
        stepping = measure_stepping(question, read, runs, sizes)
    return Benchmark(
        bundle=os.fspath(bundle),
        adapter=adapter,
        image="drawn" if image is None else os.fspath(image),
        image_size=(width, height),
        prompt=prompt,
        prompt_tokens=len(read.ids),
        steps=steps,
        runs=runs,
        load=seconds,
        reading=reading,
        stepping=stepping,
        memory=_memory(gpu),
        gpu=gpu.name if gpu else None,
        **_about(model),
    )


class _About(TypedDict):
    """The fields of a benchmark about an open model and what it runs on."""

    variant: str
    device: str
    threads: int
    processor: str
    onnxruntime: str
    image_tokens: int


def _about(model: LoadedModel) -> _About:
    return {
        "variant": model.variant,
        "device": model.device,
        "threads": model.engine.threads,
        "processor": processor_name(),
        "onnxruntime": ort.__version__,
        "image_tokens": model.engine.config.image_tokens,
    }


def _plan_for(batch_sizes: Sequence[int], load: LoadOptions) -> None:
    """Where anything is planned, plan for the largest batch; OptionError for less."""
    most, planned = max(batch_sizes), load.get("max_batch_size")
    if planned is not None and most > planned:
        raise OptionError(
            f"batch size is {most} and max_batch_size {planned}, wanted it at least as large"
        )
    if load.get("cuda_graph") or load.get("max_length") is not None:
        load["max_batch_size"] = planned or most


def draw_image(path: Path) -> None:
    """A PNG of 640 x 480 pixels that is as hard to decode as a photograph."""
    rows, columns = np.mgrid[0:480, 0:640]
    waves = 128 + 90 * np.sin(rows / 37)[..., None] * np.cos(columns[..., None] / (23, 31, 47))
    noise = np.random.default_rng(0).normal(0, 4, waves.shape)
    Image.fromarray((waves + noise).clip(0, 255).astype(np.uint8)).save(path, "PNG")


def _gpu(bundle: str | os.PathLike[str], device: DeviceName, variant: str | None) -> Gpu | None:
    """The GPU that a variant will run on, as it is before; None for a processor."""
    chosen = choose_variant(open_bundle(bundle).manifest, device, variant).variant
    if chosen.device == "cpu":
        return None
    check_present(chosen.device)
    return find_gpu()


def _memory(before: Gpu | None) -> dict[str, int]:
    """Bytes of this process now, and those of a GPU that were free before and are not now."""
    memory = {str(part): size for part, size in process_memory().items()}
    if before is None:
        return memory
    return {**memory, "gpu": before.free_bytes - find_gpu().free_bytes}


@contextlib.contextmanager
def _image_file(image: str | os.PathLike[str] | None) -> Iterator[Path]:
    if image is not None:
        yield Path(image)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "drawn.png")
        draw_image(path)
        yield path
