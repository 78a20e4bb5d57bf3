"""Names and shapes of the arrays in a big_vision checkpoint of PaliGemma.

Knows big_vision's models (models/vit.py, models/ppp/gemma.py), whose layers are stacked along
the first axis. Knows nothing of files or of values.
"""

from __future__ import annotations

import itertools

from paligemma_edge.export.checkpoint.config import PaliGemmaConfig, TextConfig, VisionConfig
from paligemma_edge.export.checkpoint.tensor_shapes import Shape

BLOCK = "img/Transformer/encoderblock/"
LAYERS = "llm/layers/"
TABLE = "llm/embedder/input_embedding"
POST_NORMS = ("post_attention_norm", "post_ffw_norm")  # of Gemma 2 alone


def array_shapes(config: PaliGemmaConfig, rows: int) -> dict[str, Shape]:
    """The shape of every array; `rows` are those of the stored embedding table."""
    vision, text = config.vision, config.text
    return {
        **_vision_arrays(vision),
        "img/head/kernel": (vision.hidden_size, text.hidden_size),
        "img/head/bias": (text.hidden_size,),
        **_text_arrays(text, rows),
    }


def _vision_arrays(vision: VisionConfig) -> dict[str, Shape]:
    width, patch, inner = vision.hidden_size, vision.patch_size, vision.intermediate_size
    heads = (vision.num_heads, width // vision.num_heads)
    stacked: dict[str, Shape] = {
        "MlpBlock_0/Dense_0/kernel": (width, inner),
        "MlpBlock_0/Dense_0/bias": (inner,),
        "MlpBlock_0/Dense_1/kernel": (inner, width),
        "MlpBlock_0/Dense_1/bias": (width,),
        "MultiHeadDotProductAttention_0/out/kernel": (*heads, width),
        "MultiHeadDotProductAttention_0/out/bias": (width,),
    }
    for norm, part in itertools.product(("LayerNorm_0", "LayerNorm_1"), ("scale", "bias")):
        stacked[f"{norm}/{part}"] = (width,)
    for name in ("query", "key", "value"):
        stacked[f"MultiHeadDotProductAttention_0/{name}/kernel"] = (width, *heads)
        stacked[f"MultiHeadDotProductAttention_0/{name}/bias"] = heads
    return {
        "img/embedding/kernel": (patch, patch, 3, width),
        "img/embedding/bias": (width,),
        "img/pos_embedding": (1, vision.image_tokens, width),
        **{f"{BLOCK}{name}": (vision.num_layers, *shape) for name, shape in stacked.items()},
        "img/Transformer/encoder_norm/scale": (width,),
        "img/Transformer/encoder_norm/bias": (width,),
    }


def _text_arrays(text: TextConfig, rows: int) -> dict[str, Shape]:
    width, inner = text.hidden_size, text.intermediate_size
    norms = ("pre_attention_norm", "pre_ffw_norm", *(POST_NORMS if text.gemma2 else ()))
    stacked: dict[str, Shape] = {
        **{f"{norm}/scale": (width,) for norm in norms},
        "attn/q_einsum/w": (text.num_heads, width, text.head_dim),
        "attn/kv_einsum/w": (2, text.num_kv_heads, width, text.head_dim),
        "attn/attn_vec_einsum/w": (text.num_heads, text.head_dim, width),
        "mlp/gating_einsum": (2, width, inner),
        "mlp/linear": (inner, width),
    }
    return {
        TABLE: (rows, width),
        **{f"{LAYERS}{name}": (text.num_layers, *shape) for name, shape in stacked.items()},
        "llm/final_norm/scale": (width,),
    }
