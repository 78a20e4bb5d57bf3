"""LoRA adapters for the tiny models, made and merged by PEFT alone."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import PaliGemmaForConditionalGeneration

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def load(folder: Path, dtype: torch.dtype | str = "auto") -> Any:  # noqa: ANN401 - without types
    model: Any = PaliGemmaForConditionalGeneration.from_pretrained(folder, dtype=dtype)
    return model.eval()


def train(base: Path, target: Path, *, seed: int = 0, **options: Any) -> Path:  # noqa: ANN401
    """An adapter that changes a lot, as if it had been trained."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft warns of tied layers and of layers without a bias
        model = get_peft_model(load(base), LoraConfig(**{"r": 4, "lora_alpha": 6, **options}))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    noise = 0.1 * torch.randn(parameter.shape, generator=generator)
                    plain = "lora_A" in name or "lora_B" in name or "lora_embedding" in name
                    parameter.copy_(noise if plain else parameter + noise)
        model.save_pretrained(str(target))
    return target


def merge(base: Path, adapters: Sequence[Path]) -> dict[str, torch.Tensor]:
    """The state of the base, loaded in its own dtype, after each adapter was merged in turn."""
    model = load(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for adapter in adapters:
            model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return dict(model.state_dict())


def rename(adapter: Path, target: Path, change: Callable[[str], str]) -> Path:
    """The same adapter under other keys."""
    target.mkdir()
    (target / CONFIG).write_bytes((adapter / CONFIG).read_bytes())
    tensors = {change(key): tensor for key, tensor in load_file(adapter / WEIGHTS).items()}
    save_file(tensors, target / WEIGHTS)
    return target


def edit(adapter: Path, **fields: Any) -> Path:  # noqa: ANN401
    """Change fields of adapter_config.json."""
    config = json.loads((adapter / CONFIG).read_text())
    (adapter / CONFIG).write_text(json.dumps({**config, **fields}))
    return adapter
