"""Shapes of a PaliGemma's tensors, by internal name.

Knows how the architecture sizes each tensor. Knows nothing of files or of values.
"""

from __future__ import annotations

from collections.abc import Mapping

from paligemma_edge.export.checkpoint.config import PaliGemmaConfig, TextConfig, VisionConfig
from paligemma_edge.export.checkpoint.tensor_names import EMBEDDING

Shape = tuple[int, ...]


def expected_shapes(config: PaliGemmaConfig) -> dict[str, Shape]:
    """Return the shape of every tensor, by internal name; the LM head is the embedding."""
    vision, text = config.vision, config.text
    return {
        **_vision_shapes(vision),
        "projector.weight": (text.hidden_size, vision.hidden_size),
        "projector.bias": (text.hidden_size,),
        **_text_shapes(text),
    }


def _vision_shapes(vision: VisionConfig) -> dict[str, Shape]:
    width, patch = vision.hidden_size, vision.patch_size
    shapes: dict[str, Shape] = {
        "vision.patch_embedding.weight": (width, 3, patch, patch),
        "vision.patch_embedding.bias": (width,),
        "vision.position_embedding.weight": (vision.image_tokens, width),
    }
    for i in range(vision.num_layers):
        shapes |= {f"vision.layers.{i}.{k}": v for k, v in _vision_layer_shapes(vision).items()}
    return shapes | {
        "vision.post_layernorm.weight": (width,),
        "vision.post_layernorm.bias": (width,),
    }


def _vision_layer_shapes(vision: VisionConfig) -> dict[str, Shape]:
    width, inner = vision.hidden_size, vision.intermediate_size
    weights: dict[str, Shape] = {
        "layer_norm1": (width,),
        "q_proj": (width, width),
        "k_proj": (width, width),
        "v_proj": (width, width),
        "out_proj": (width, width),
        "layer_norm2": (width,),
        "fc1": (inner, width),
        "fc2": (width, inner),
    }
    biases = {f"{name}.bias": shape[:1] for name, shape in weights.items()}
    return {f"{name}.weight": shape for name, shape in weights.items()} | biases


def _text_shapes(text: TextConfig) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {EMBEDDING: (text.vocab_size, text.hidden_size)}
    for i in range(text.num_layers):
        shapes |= {f"decoder.layers.{i}.{k}.weight": v for k, v in _text_layer_shapes(text).items()}
    return shapes | {"decoder.norm.weight": (text.hidden_size,)}


def _text_layer_shapes(text: TextConfig) -> dict[str, Shape]:
    width, inner = text.hidden_size, text.intermediate_size
    queries, keys = text.num_heads * text.head_dim, text.num_kv_heads * text.head_dim
    shapes: dict[str, Shape] = {
        "input_layernorm": (width,),
        "q_proj": (queries, width),
        "k_proj": (keys, width),
        "v_proj": (keys, width),
        "o_proj": (width, queries),
        "post_attention_layernorm": (width,),
        "gate_proj": (inner, width),
        "up_proj": (inner, width),
        "down_proj": (width, inner),
    }
    if text.gemma2 is not None:
        shapes |= dict.fromkeys(
            ("pre_feedforward_layernorm", "post_feedforward_layernorm"), (width,)
        )
    return shapes


def contradictions(config: PaliGemmaConfig, shapes: Mapping[str, Shape]) -> list[str]:
    """List each size of config.json that differs from the tensors' shapes."""
    vision, text = config.vision, config.text
    first, layer = "vision.layers.0.", "decoder.layers.0."
    sizes = [
        ("vision hidden_size", vision.hidden_size, "vision.patch_embedding.weight", 0),
        ("vision patch_size", vision.patch_size, "vision.patch_embedding.weight", 2),
        ("vision image tokens", vision.image_tokens, "vision.position_embedding.weight", 0),
        ("vision intermediate_size", vision.intermediate_size, first + "fc1.weight", 0),
        ("text vocab_size", text.vocab_size, EMBEDDING, 0),
        ("text hidden_size", text.hidden_size, EMBEDDING, 1),
        ("text intermediate_size", text.intermediate_size, layer + "gate_proj.weight", 0),
        ("text heads x head_dim", text.num_heads * text.head_dim, layer + "q_proj.weight", 0),
        ("text kv heads x head_dim", text.num_kv_heads * text.head_dim, layer + "k_proj.weight", 0),
    ]
    return [
        f"{label} is {size}, the tensors have {shapes[name][axis]}"
        for label, size, name, axis in sizes
        if axis < len(shapes.get(name, ())) and shapes[name][axis] != size
    ]
