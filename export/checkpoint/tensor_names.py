"""Names and shapes of a PaliGemma's tensors, under one internal name set.

Knows the key layouts that PaliGemma checkpoints have had (transformers' own
`conversion_mapping.py` and the files on the Hub), and how the architecture sizes each tensor.
Knows nothing of files or of values.

    A  files on the Hub, transformers up to 4.51, and newer releases saving what they loaded
    B  transformers 4.52 to 5.5 in memory
    C  transformers 5.6 and later in memory
    D  transformers 5.6 and later saving a model that was made new
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal

from paligemma_edge.export.checkpoint.config import PaliGemmaConfig, TextConfig, VisionConfig
from paligemma_edge.runtime.errors import CheckpointError

Layout = Literal["A", "B", "C", "D"]
Shape = tuple[int, ...]

EMBEDDING = "decoder.embed_tokens.weight"
LM_HEAD = "lm_head.weight"  # the same table as EMBEDDING: kept apart until both were compared

# Source prefix of each internal part, by layout.
PREFIXES: Mapping[Layout, Mapping[str, str]] = {
    "A": {
        "vision.": "vision_tower.vision_model.",
        "projector.": "multi_modal_projector.linear.",
        "decoder.": "language_model.model.",
        "lm_head.": "language_model.lm_head.",
    },
    "B": {
        "vision.": "model.vision_tower.vision_model.",
        "projector.": "model.multi_modal_projector.linear.",
        "decoder.": "model.language_model.",
        "lm_head.": "lm_head.",
    },
    "C": {
        "vision.": "model.vision_tower.",
        "projector.": "model.multi_modal_projector.linear.",
        "decoder.": "model.language_model.",
        "lm_head.": "lm_head.",
    },
    "D": {
        "vision.": "vision_tower.",
        "projector.": "multi_modal_projector.linear.",
        "decoder.": "language_model.model.",
        "lm_head.": "language_model.lm_head.",
    },
}
# Nested modules of transformers whose name the internal set leaves out.
_VISION_MODULES = {
    r"patch_embedding|position_embedding": "embeddings.",
    r"layers\.\d+": "encoder.",
}
_LAYER_MODULES = {
    r"[qkv]_proj|out_proj|o_proj": "self_attn.",
    r"fc[12]|gate_proj|up_proj|down_proj": "mlp.",
}
# Buffers that some releases stored beside the weights.
_BUFFERS = re.compile(r"(\.position_ids|\.rotary_emb\.inv_freq|\.embed_scale)$")


def source_key(name: str, layout: Layout) -> str:
    """Return the key under which `layout` stores the tensor that is called `name` here."""
    part = name.split(".", 1)[0] + "."
    rest = name.removeprefix(part)
    if part == "vision.":
        rest = _nest(rest, r"", _VISION_MODULES)
    rest = _nest(rest, r"(?:encoder\.)?layers\.\d+\.", _LAYER_MODULES)
    return PREFIXES[layout][part] + rest


def _nest(rest: str, before: str, modules: Mapping[str, str]) -> str:
    for pattern, module in modules.items():
        rest = re.sub(rf"^({before})(?=(?:{pattern})\.)", rf"\g<1>{module}", rest)
    return rest


def is_buffer(key: str) -> bool:
    """Say whether a checkpoint's key is a known buffer that holds no weight."""
    return _BUFFERS.search(key) is not None


def match_names(keys: Iterable[str], wanted: Iterable[str]) -> dict[str, str]:
    """Map internal names to the keys that hold them; unknown keys are left out.

    Raises CheckpointError when two keys give one name: the layouts are mixed.
    """
    names = {source_key(name, layout): name for name in [*wanted, LM_HEAD] for layout in PREFIXES}
    found: dict[str, str] = {}
    for key in keys:
        if (name := names.get(key)) is None:
            continue
        if name in found:
            raise CheckpointError(
                f"checkpoint holds {found[name]!r} and {key!r}, two keys for one tensor; "
                "save it again with one release of transformers"
            )
        found[name] = key
    return found


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
    """List each size that config.json gives and the tensors' shapes deny."""
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
        f"{label} is {said}, the tensors have {shapes[name][axis]}"
        for label, said, name, axis in sizes
        if axis < len(shapes.get(name, ())) and shapes[name][axis] != said
    ]


def compact(names: Iterable[str]) -> str:
    """Join names on one line, sorted, with the layers of equal names as ranges."""
    groups: dict[str, list[int]] = {}
    for name in names:
        parts = re.split(r"(?<=\blayers\.)(\d+)(?=\.)", name, maxsplit=1)
        layer = int(parts[1]) if len(parts) > 1 else -1
        groups.setdefault("{}".join((parts[0], *parts[2:])), []).append(layer)
    return ", ".join(name.replace("{}", _ranges(groups[name])) for name in sorted(groups))


def _ranges(layers: list[int]) -> str:
    layers = sorted(layers)
    starts = [n for n in layers if n - 1 not in layers]
    ends = [n for n in layers if n + 1 not in layers]
    spans = [str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True)]
    return spans[0] if spans == [str(layers[0])] else "{" + ",".join(spans) + "}"
