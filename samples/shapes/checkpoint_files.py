"""The model's configuration, and the files of a Hugging Face PaliGemma repository."""

from __future__ import annotations

import json
import shutil
from copy import deepcopy
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    GemmaConfig,
    GenerationConfig,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    SiglipImageProcessor,
    SiglipVisionConfig,
)

from samples.shapes import tokenizer
from samples.shapes.scenes import SIDE

PATCH = 14
PATCHES = (SIDE // PATCH) ** 2
IMAGE_ID = tokenizer.VOCABULARY + len(tokenizer.LOCATIONS) + len(tokenizer.SEGMENTS)
ROWS = -(-(IMAGE_ID + 1) // 64) * 64


def config() -> PaliGemmaConfig:
    """PaliGemma's configuration at a five-hundredth of its size."""
    vision = SiglipVisionConfig(
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=6,
        image_size=SIDE,
        patch_size=PATCH,
        vision_use_head=False,
    )
    text = GemmaConfig(
        vocab_size=ROWS,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=64,
        max_position_embeddings=512,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    return PaliGemmaConfig(  # type: ignore[call-arg]
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE_ID,
        vocab_size=IMAGE_ID,
        projection_dim=192,
        hidden_size=192,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )


def image_processor() -> SiglipImageProcessor:
    """SigLIP's preprocessing at this model's size."""
    return SiglipImageProcessor(
        size={"height": SIDE, "width": SIDE},
        resample=3,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        image_seq_length=PATCHES,
    )


def write(model: PaliGemmaForConditionalGeneration, spm: bytes, vae: Path, folder: Path) -> None:
    """Replace `folder` by a checkpoint: bfloat16 weights, configuration, tokenizer, mask VQ-VAE."""
    fresh = folder.with_name(folder.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    _save_model(model, fresh)
    tokenizer.save(spm, fresh)
    image_processor().save_pretrained(fresh)
    _drop_machine_fields(fresh / "tokenizer_config.json")
    shutil.copyfile(vae, fresh / "vae-oid.npz")
    shutil.copyfile(Path(__file__).parents[2] / "LICENSE", fresh / "LICENSE")
    _swap(fresh, folder)


def _save_model(model: PaliGemmaForConditionalGeneration, folder: Path) -> None:
    rounded = deepcopy(model)
    torch.nn.Module.to(rounded, torch.bfloat16)
    rounded.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        pad_token_id=0, eos_token_id=1, bos_token_id=2
    )
    rounded.config.get_text_config().use_cache = True  # training switches it off
    rounded.save_pretrained(folder)
    _use_hub_names(folder / "model.safetensors")


def _use_hub_names(path: Path) -> None:
    """Put `vision_model` into the tower's names: a model not loaded from the Hub has none there."""
    tower, hub = "vision_tower.", "vision_tower.vision_model."
    tensors = {
        name if name.startswith(hub) else name.replace(tower, hub): tensor
        for name, tensor in load_file(path).items()
    }
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(0o644)


def _drop_machine_fields(path: Path) -> None:
    """Drop the fields that transformers writes about the machine it ran on."""
    known = json.loads(path.read_text(encoding="utf-8"))
    kept = {
        key: value
        for key, value in known.items()
        if key not in ("vocab_file", "is_local", "local_files_only")
    }
    path.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


def _swap(fresh: Path, folder: Path) -> None:
    """Put the finished folder in the place of the old one."""
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.replace(old)
    fresh.replace(folder)
    shutil.rmtree(old, ignore_errors=True)


def processor(folder: Path) -> PaliGemmaProcessor:
    """The processor of a written checkpoint."""
    loaded: PaliGemmaProcessor = PaliGemmaProcessor.from_pretrained(folder)
    return loaded
