"""The config of a big_vision checkpoint, derived from its shapes: it has no config.json.

Knows big_vision's array names. The shapes fill the fields of a config.json, so that the same checks
apply to both kinds of checkpoint; what no shape gives is as in the released models.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from paligemma_edge.export.checkpoint.big_vision_arrays import BLOCK, LAYERS, POST_NORMS, TABLE
from paligemma_edge.export.checkpoint.config import PaliGemmaConfig, parse_config
from paligemma_edge.export.checkpoint.name_list import join_names
from paligemma_edge.export.checkpoint.tensor_shapes import Shape
from paligemma_edge.runtime.errors import CheckpointError

# The arrays that sizes are read from, with the number of their axes.
_PATCHES = ("img/embedding/kernel", 4)  # [patch, patch, 3, width]
_POSITIONS = ("img/pos_embedding", 3)  # [1, tokens, width]
_QUERIES = (f"{BLOCK}MultiHeadDotProductAttention_0/query/kernel", 4)  # [layers, width, heads, _]
_FC1 = (f"{BLOCK}MlpBlock_0/Dense_0/kernel", 3)  # [layers, width, intermediate]
_ROWS = (TABLE, 2)  # [rows, width]
_Q = (f"{LAYERS}attn/q_einsum/w", 4)  # [layers, heads, width, head_dim]
_KV = (f"{LAYERS}attn/kv_einsum/w", 5)  # [layers, 2, kv heads, width, head_dim]
_GATE_UP = (f"{LAYERS}mlp/gating_einsum", 4)  # [layers, 2, width, intermediate]
_SIZED = (_PATCHES, _POSITIONS, _QUERIES, _FC1, _ROWS, _Q, _KV, _GATE_UP)

_ROW_MULTIPLE = 64  # Hugging Face pads the table after <image> to it
_WIDE_HEAD_DIM = 256  # of every released decoder but the 28B's


def read_big_vision_config(shapes: Mapping[str, Shape]) -> PaliGemmaConfig:
    """Derive every size from the arrays' shapes, by name.

    Raises CheckpointError when the arrays belong to another model.
    """
    if missing := [name for name, _ in _SIZED if name not in shapes]:
        raise CheckpointError(
            f"npz is not a PaliGemma of big_vision: it lacks {join_names(missing)}, and holds "
            f"{join_names(sorted(shapes)) or 'nothing'}; give an npz as big_vision saves it"
        )
    odd = [f"{name} {list(shapes[name])}" for name, axes in _SIZED if len(shapes[name]) != axes]
    if odd:
        raise CheckpointError(
            f"npz has arrays with another number of axes than PaliGemma's: {join_names(odd)}; "
            "give an npz as big_vision saves it, with its layers stacked"
        )
    try:
        return parse_config(_as_config_json(shapes))
    except CheckpointError as error:
        reason = str(error).removeprefix("config.json has ")
        raise CheckpointError(f"shapes in the npz are not a PaliGemma's: {reason}") from None


def _as_config_json(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    rows, _ = shapes[TABLE]
    return {
        "model_type": "paligemma",
        "image_token_index": rows,
        "vision_config": _vision(shapes),
        "text_config": _text(shapes),
    }


def _vision(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    patch, _, _, width = shapes[_PATCHES[0]]
    layers, _, heads, _ = shapes[_QUERIES[0]]
    tokens = shapes[_POSITIONS[0]][1]
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise CheckpointError(
            f"{_POSITIONS[0]} has {tokens} positions, wanted those of a square image; "
            "give an npz as big_vision saves it"
        )
    return {
        "image_size": side * patch,
        "patch_size": patch,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": shapes[_FC1[0]][2],
    }


def _text(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    rows, width = shapes[TABLE]
    layers, heads, _, head_dim = shapes[_Q[0]]
    text = {
        "model_type": "gemma",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": shapes[_KV[0]][2],
        "head_dim": head_dim,
        "intermediate_size": shapes[_GATE_UP[0]][3],
        "vocab_size": padded_rows(rows),
    }
    if not any(f"{LAYERS}{norm}/scale" in shapes for norm in POST_NORMS):
        return text
    return {**text, "model_type": "gemma2", "query_pre_attn_scalar": _query_scalar(text)}


def padded_rows(rows: int) -> int:
    """Rows of the embedding table in Hugging Face's checkpoints: `<image>`, then a multiple of 64.

    257,152 rows become 257,216.
    """
    return (rows // _ROW_MULTIPLE + 1) * _ROW_MULTIPLE


def _query_scalar(text: Mapping[str, Any]) -> int:
    """Scores are divided by its square root: the size of a head in PaliGemma 2 3B and 10B.

    The 28B is the one whose heads are narrower than 256; there it is the width that each head
    would have if they shared the hidden size: 4608 / 32 = 144 (big_vision's
    `query_pre_attn_norm="rsqrt_emb_per_head"`).
    """
    head_dim: int = text["head_dim"]
    if head_dim >= _WIDE_HEAD_DIM:
        return head_dim
    return max(1, text["hidden_size"] // max(1, text["num_attention_heads"]))
