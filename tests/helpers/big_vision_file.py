"""A Hugging Face checkpoint written back as big_vision has it, by the inverse of the conversion."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from tests.conftest import IMAGE_ID

Arrays = dict[str, NDArray[Any]]

VISION = "vision_tower.vision_model."
LAYER = VISION + "encoder.layers.{}."
TEXT = "language_model.model."
BLOCK = "img/Transformer/encoderblock/"
ATTENTION = BLOCK + "MultiHeadDotProductAttention_0/"


def as_big_vision(folder: Path, vision_heads: int = 2, heads: int = 2, kv_heads: int = 1) -> Arrays:
    """The arrays of a checkpoint whose keys have layout A."""
    state = load_file(folder / "model.safetensors")
    return _vision(state, vision_heads) | _text(state, heads, kv_heads)


def save(
    path: Path, arrays: Mapping[str, NDArray[Any]], *, words: str = "", folder: str = ""
) -> Path:
    """Write an npz; bfloat16 as numpy has it, or as the raw `words` of a dtype."""
    stored = {
        f"{folder}{name}": np.ascontiguousarray(a).view(words) if words else np.ascontiguousarray(a)
        for name, a in arrays.items()
    }
    np.savez(path, **stored)  # type: ignore[arg-type]
    return path


def split(path: Path, parts: int = 3) -> list[Path]:
    """Cut a file into NAME.part0 and on, and remove it."""
    data = path.read_bytes()
    step = -(-len(data) // parts)
    names = [path.with_name(f"{path.name}.part{i}") for i in range(parts)]
    for i, name in enumerate(names):
        name.write_bytes(data[i * step : (i + 1) * step])
    path.unlink()
    return names


def _vision(state: Mapping[str, NDArray[Any]], heads: int) -> Arrays:
    patches = state[VISION + "embeddings.patch_embedding.weight"]
    width = len(patches)
    layers = sum(key.endswith("layer_norm1.bias") for key in state)

    def stack(name: str) -> NDArray[Any]:
        return np.stack([state[LAYER.format(i) + name] for i in range(layers)])

    def linear(name: str) -> NDArray[Any]:  # [layers, in, out]
        return stack(name + ".weight").transpose(0, 2, 1)

    arrays = {
        "img/embedding/kernel": patches.transpose(2, 3, 1, 0),
        "img/embedding/bias": state[VISION + "embeddings.patch_embedding.bias"],
        "img/pos_embedding": state[VISION + "embeddings.position_embedding.weight"][None],
        "img/Transformer/encoder_norm/scale": state[VISION + "post_layernorm.weight"],
        "img/Transformer/encoder_norm/bias": state[VISION + "post_layernorm.bias"],
        "img/head/kernel": state["multi_modal_projector.linear.weight"].T,
        "img/head/bias": state["multi_modal_projector.linear.bias"],
        ATTENTION + "out/kernel": linear("self_attn.out_proj").reshape(layers, heads, -1, width),
        ATTENTION + "out/bias": stack("self_attn.out_proj.bias"),
    }
    for theirs, ours in (("query", "q"), ("key", "k"), ("value", "v")):
        kernel = linear(f"self_attn.{ours}_proj")
        arrays[f"{ATTENTION}{theirs}/kernel"] = kernel.reshape(layers, width, heads, -1)
        bias = stack(f"self_attn.{ours}_proj.bias")
        arrays[f"{ATTENTION}{theirs}/bias"] = bias.reshape(layers, heads, -1)
    for i in range(2):
        arrays[f"{BLOCK}LayerNorm_{i}/scale"] = stack(f"layer_norm{i + 1}.weight")
        arrays[f"{BLOCK}LayerNorm_{i}/bias"] = stack(f"layer_norm{i + 1}.bias")
        arrays[f"{BLOCK}MlpBlock_0/Dense_{i}/kernel"] = linear(f"mlp.fc{i + 1}")
        arrays[f"{BLOCK}MlpBlock_0/Dense_{i}/bias"] = stack(f"mlp.fc{i + 1}.bias")
    return arrays


def _text(state: Mapping[str, NDArray[Any]], heads: int, kv_heads: int) -> Arrays:
    table = state[TEXT + "embed_tokens.weight"]
    width = table.shape[1]
    layers = sum(key.endswith("q_proj.weight") and key.startswith(TEXT) for key in state)

    def stack(name: str) -> NDArray[Any]:
        return np.stack([state[f"{TEXT}layers.{i}.{name}.weight"] for i in range(layers)])

    def by_head(name: str, count: int) -> NDArray[Any]:  # [layers, heads, width, head_dim]
        return stack(f"self_attn.{name}").reshape(layers, count, -1, width).transpose(0, 1, 3, 2)

    kv = np.stack([by_head("k_proj", kv_heads), by_head("v_proj", kv_heads)], axis=1)
    out = stack("self_attn.o_proj").reshape(layers, width, heads, -1).transpose(0, 2, 3, 1)
    gate_up = np.stack([stack("mlp.gate_proj"), stack("mlp.up_proj")], axis=1)
    arrays = {
        "llm/embedder/input_embedding": table[:IMAGE_ID],
        "llm/layers/attn/q_einsum/w": by_head("q_proj", heads),
        "llm/layers/attn/kv_einsum/w": kv,
        "llm/layers/attn/attn_vec_einsum/w": out,
        "llm/layers/mlp/gating_einsum": gate_up.transpose(0, 1, 3, 2),
        "llm/layers/mlp/linear": stack("mlp.down_proj").transpose(0, 2, 1),
        "llm/layers/pre_attention_norm/scale": stack("input_layernorm"),
        "llm/final_norm/scale": state[TEXT + "norm.weight"],
    }
    if f"{TEXT}layers.0.pre_feedforward_layernorm.weight" not in state:
        return {**arrays, "llm/layers/pre_ffw_norm/scale": stack("post_attention_layernorm")}
    return {
        **arrays,
        "llm/layers/post_attention_norm/scale": stack("post_attention_layernorm"),
        "llm/layers/pre_ffw_norm/scale": stack("pre_feedforward_layernorm"),
        "llm/layers/post_ffw_norm/scale": stack("post_feedforward_layernorm"),
    }
