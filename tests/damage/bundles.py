"""The sample model's bundle with all that a bundle can have, and what it answers."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from paligemma_edge.export.exporter import export
from paligemma_edge.export.lora.add_to_bundle import add_adapter
from paligemma_edge.quantize.quantizer import QuantizeOptions, quantize
from paligemma_edge.quantize.recipes.recipe import load_recipe
from paligemma_edge.runtime.cli.main import main

ROOT = Path(__file__).parents[2]
CHECKPOINT = ROOT / "samples" / "shapes" / "checkpoint"
IMAGES = ROOT / "samples" / "images"
IMAGE = min(IMAGES.glob("*.png"))
VARIANT = "cpu-int8"
_LAYER = "base_model.model.language_model.model.layers.0.self_attn.q_proj"


def write_adapter(folder: Path) -> Path:
    """A LoRA adapter of one layer, as PEFT saves it."""
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps({**config, "bias": "none"}))
    random = np.random.default_rng(3)
    parts = {"lora_A": (2, 192), "lora_B": (256, 2)}
    weights = {
        f"{_LAYER}.{part}.weight": random.standard_normal(shape).astype(np.float32)
        for part, shape in parts.items()
    }
    save_file(weights, folder / "adapter_model.safetensors")
    return folder


def write_bundle(bundle: Path, adapter: Path) -> None:
    """A bundle with two variants, an adapter for the lossless one, and the other one prepacked."""
    export(CHECKPOINT, bundle)
    quantize(bundle, [load_recipe(VARIANT)], QuantizeOptions(calibrate=False, report=False))
    add_adapter(bundle, adapter, "old", variants=["cpu-fp32"])
    code, _, errors = command("prepack", bundle, "--variant", VARIANT)
    assert code == 0, errors


def command(*arguments: str | Path) -> tuple[int, str, str]:
    """A command in this process: its exit code, its output and its errors."""
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        code = main(list(map(str, arguments)))
    return code, output.getvalue(), errors.getvalue()
