"""The decoder that config.json describes, Gemma or Gemma 2.

Fills the defaults that transformers 5.23 fills (GemmaConfig, Gemma2Config). Never looks at a
tensor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from paligemma_edge.export.checkpoint.config_fields import (
    MOST_LAYERS,
    Json,
    integer,
    number,
    present,
    reject,
    section,
)

# What the tokens of an answer see in a sliding layer: everything, as the model was trained and
# scored (big_vision has no window), or the last keys, as transformers computes it.
SlidingWindow: TypeAlias = Literal["full", "hf"]

# What an absent field of a present section means.
_GEMMA: Json = {
    "hidden_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 256,
    "intermediate_size": 24576,
    "vocab_size": 256000,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 8192,
    "rope_theta": 10000.0,
}
_GEMMA2: Json = {
    **_GEMMA,
    "hidden_size": 2304,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "intermediate_size": 9216,
    "query_pre_attn_scalar": 256,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "sliding_window": 4096,
}
# What an absent section means: the released PaliGemma. transformers' own default is
# a vocabulary of 257152, which no released checkpoint has.
_ABSENT: Json = {
    "hidden_size": 2048,
    "num_hidden_layers": 18,
    "num_attention_heads": 8,
    "num_key_value_heads": 1,
    "intermediate_size": 16384,
    "vocab_size": 257216,
}
_SWITCHED_OFF_BY_NULL = ("attn_logit_softcapping", "final_logit_softcapping", "sliding_window")
_SLIDING, _FULL = "sliding_attention", "full_attention"

_MOST_POSITIONS = 2**20
_MOST_ANGLES = 2**28  # of the rotary tables, which are 4 bytes each


@dataclass(frozen=True, kw_only=True)
class Gemma2Config:
    """What Gemma 2 adds to Gemma, besides a norm after each half of a layer."""

    query_pre_attn_scalar: float  # scores are divided by its square root; not always head_dim
    attn_softcap: float | None  # bounds of the scores, and of the logits
    final_softcap: float | None
    sliding_window: int | None  # keys that an answer's tokens see in the sliding layers
    sliding_layers: tuple[bool, ...]


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Sizes of the decoder."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int  # rows of the embedding table
    rope_theta: float
    rms_norm_eps: float
    max_position_embeddings: int
    gemma2: Gemma2Config | None = None  # None: the decoder is Gemma


def read_text_config(data: Json) -> TextConfig:
    """Read `text_config` of a config.json that `unsupported` has checked.

    Raises CheckpointError where a field is unusable.
    """
    given = section(data, "text_config")
    if given.get("model_type") == "gemma2":
        values = {**_GEMMA2, **_present_or_off(given)}
        return _text(values, _gemma2(values))
    return _text({**_GEMMA, **(present(given) if data.get("text_config") is not None else _ABSENT)})


def _present_or_off(given: Json) -> Json:
    off = {name: None for name in _SWITCHED_OFF_BY_NULL if name in given}
    return {**off, **present(given)}


def _text(values: Json, gemma2: Gemma2Config | None = None) -> TextConfig:
    rope = values.get("rope_scaling") or values.get("rope_parameters") or {}
    text = TextConfig(
        hidden_size=integer(values, "hidden_size"),
        num_layers=integer(values, "num_hidden_layers", most=MOST_LAYERS),
        num_heads=integer(values, "num_attention_heads"),
        num_kv_heads=integer(values, "num_key_value_heads"),
        head_dim=integer(values, "head_dim"),
        intermediate_size=integer(values, "intermediate_size"),
        vocab_size=integer(values, "vocab_size"),
        rope_theta=number({**values, **present(rope)}, "rope_theta", 1.0, 1e12),
        rms_norm_eps=number(values, "rms_norm_eps", 1e-12, 1.0),
        max_position_embeddings=integer(values, "max_position_embeddings", most=_MOST_POSITIONS),
        gemma2=gemma2,
    )
    if text.num_heads % text.num_kv_heads:
        reject("text_config.num_key_value_heads", text.num_kv_heads, "a divisor of the heads")
    if text.head_dim % 16:
        reject("text_config.head_dim", text.head_dim, "a multiple of 16, for ONNX Runtime")
    if text.head_dim * text.max_position_embeddings > _MOST_ANGLES:
        reject("text_config.head_dim", text.head_dim, f"{_MOST_ANGLES} angles of all positions")
    return text


def _gemma2(values: Json) -> Gemma2Config:
    window = values["sliding_window"]
    layers = integer(values, "num_hidden_layers", most=MOST_LAYERS)
    return Gemma2Config(
        query_pre_attn_scalar=number(values, "query_pre_attn_scalar", 1e-3, 1e6),
        attn_softcap=_softcap(values, "attn_logit_softcapping"),
        final_softcap=_softcap(values, "final_logit_softcapping"),
        sliding_window=None if window is None else integer(values, "sliding_window"),
        sliding_layers=_sliding_layers(values.get("layer_types"), layers),
    )


def _softcap(values: Json, name: str) -> float | None:
    return None if values[name] is None else number(values, name, 1e-3, 1e6)


def _sliding_layers(kinds: object, layers: int) -> tuple[bool, ...]:
    """The even layers, counted from 0, where no `layer_types` say otherwise."""
    if kinds is None:
        return tuple(layer % 2 == 0 for layer in range(layers))
    known = isinstance(kinds, list) and all(kind in (_SLIDING, _FULL) for kind in kinds)
    if not isinstance(kinds, list) or not known or len(kinds) != layers:
        reject("text_config.layer_types", kinds, f"{_SLIDING!r} or {_FULL!r} for each layer")
    return tuple(kind == _SLIDING for kind in kinds)
