"""Measures transformers on a checkpoint, by the stages that `paligemma-edge bench` measures.

    python -m samples.benchmark_transformers CHECKPOINT --dtype bfloat16 --image photo.png

One line of JSON comes out. The model is called as a user calls it, whole; hooks tell the time of
the vision tower and of the projector, and prefill is what remains of the call, with the choice of
the first token. A step is one call with the token before it and the cache.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paligemma_edge.runtime.host import available_memory, process_memory, processor_name
from paligemma_edge.runtime.stopwatch import Stage, Stopwatch
from paligemma_edge.runtime.timings import StepTimings, Timings, until_first_token

ITEMSIZES = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass
class Original:
    """transformers' model and processor, as they are."""

    model: Any  # PaliGemmaForConditionalGeneration: its methods carry no types
    processor: Any  # PaliGemmaProcessor
    watch: Stopwatch = field(default_factory=Stopwatch)

    @classmethod
    def load(cls, checkpoint: Path, dtype: str) -> Original:
        """Load with the attention that transformers chooses by itself."""
        import torch
        from transformers import PaliGemmaForConditionalGeneration, PaliGemmaProcessor

        model = PaliGemmaForConditionalGeneration.from_pretrained(
            checkpoint, dtype=getattr(torch, dtype), local_files_only=True
        )
        original = cls(model, PaliGemmaProcessor.from_pretrained(checkpoint, local_files_only=True))
        original._listen("vision", model.model.vision_tower)
        original._listen("projector", model.model.multi_modal_projector)
        return original

    def read(self, image: Path, prompt: str) -> tuple[int, Any, int]:
        """From the picture's file to the first token → token, cache, tokens of the prompt."""
        import torch
        from PIL import Image
        from transformers import DynamicCache

        with self.watch.measure("preprocess"):
            picture = Image.open(image).convert("RGB")
            inputs = self.processor(
                text=[f"<image>{prompt}"], images=[picture], return_tensors="pt"
            )
            pixels = inputs["pixel_values"].to(self.model.dtype)
        start, ids = time.perf_counter(), inputs["input_ids"]
        cache = DynamicCache()
        output = self.model(
            input_ids=ids,
            token_type_ids=torch.zeros_like(ids),
            pixel_values=pixels,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        token = int(output.logits[0, -1].argmax())
        seconds, heard = time.perf_counter() - start, self.watch.seconds
        self.watch.add("prefill", seconds - heard["vision"] - heard["projector"])
        image_tokens = int((ids == self.model.config.image_token_id).sum())
        return token, cache, ids.shape[1] - image_tokens

    def step_seconds(self, token: int, cache: Any, steps: int) -> float:  # noqa: ANN401
        """Seconds of one greedy step; the end-of-sequence token ends nothing."""
        import torch

        start = time.perf_counter()
        for _ in range(steps):
            last = torch.tensor([[token]])
            output = self.model(input_ids=last, past_key_values=cache, use_cache=True)
            token = int(output.logits[0, -1].argmax())
        return (time.perf_counter() - start) / steps

    def _listen(self, stage: Stage, module: Any) -> None:  # noqa: ANN401
        started: list[float] = []
        module.register_forward_pre_hook(lambda *_: started.append(time.perf_counter()))
        module.register_forward_hook(
            lambda *_: self.watch.add(stage, time.perf_counter() - started.pop())
        )


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Read and step `runs` times after a warm-up."""
    start = time.perf_counter()
    import torch
    import transformers
    from transformers import PaliGemmaForConditionalGeneration  # noqa: F401 - found lazily

    imported = time.perf_counter() - start
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    start = time.perf_counter()
    original = Original.load(options.checkpoint, options.dtype)
    load = time.perf_counter() - start
    watches, steps, prompt_tokens = [], [], 0
    with torch.inference_mode():
        for _ in range(options.runs + 1):
            original.watch = Stopwatch()
            token, cache, prompt_tokens = original.read(options.image, options.prompt)
            watches.append(original.watch)
            steps.append(original.step_seconds(token, cache, options.steps))
    return {
        "import": round(imported, 6),
        "checkpoint": str(options.checkpoint),
        "dtype": options.dtype,
        "attention": original.model.config._attn_implementation,
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "processor": processor_name(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "image": str(options.image),
        "prompt": options.prompt,
        "prompt_tokens": prompt_tokens,
        "steps": options.steps,
        "runs": options.runs,
        "load": round(load, 6),
        "reading": {k: v.to_json() for k, v in until_first_token(watches[1:]).items()},
        "stepping": [StepTimings(1, Timings(tuple(steps[1:]))).to_json()],
        "memory": process_memory(),
    }


def shortage(parameters: int, dtype: str, available: int | None) -> str | None:
    """Why a model does not fit into memory; None where it does, or where nobody can tell."""
    needed = parameters * ITEMSIZES[dtype]
    if available is None or needed <= available:
        return None
    return (
        f"{parameters / 1e9:.2f} billion parameters in {dtype} take {needed / 1e9:.1f} GB, "
        f"{available / 1e9:.1f} GB are free"
    )


def count_parameters(checkpoint: Path) -> int:
    """Parameters that are stored; no tensor is read."""
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


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m samples.benchmark_transformers", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--dtype", choices=ITEMSIZES, default="bfloat16")
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--prompt", default="answer en what is this?")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, help="default: as torch chooses")
    options = parser.parse_args(arguments)
    for name in ("steps", "runs", "threads"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name} is {value}, wanted 1 or more")
    return options


def main() -> None:
    options = parse_args()
    parameters = count_parameters(options.checkpoint)
    reason = shortage(parameters, options.dtype, available_memory())
    print(json.dumps({"skipped": reason} if reason else measure(options)))


if __name__ == "__main__":
    main()
