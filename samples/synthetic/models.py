"""Sizes of the released models, PaliGemma and PaliGemma 2, whole and shrunk for tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from paligemma_edge.export.checkpoint.config import Gemma2Config, TextConfig, VisionConfig

_GEMMA_2B = TextConfig(
    hidden_size=2048,
    num_layers=18,
    num_heads=8,
    num_kv_heads=1,
    head_dim=256,
    intermediate_size=16384,
    vocab_size=257_216,
    rope_theta=10000.0,
    rms_norm_eps=1e-6,
    max_position_embeddings=8192,
)


def _gemma2(
    *, hidden: int, layers: int, heads: int, inner: int, head_dim: int = 256, scalar: int = 256
) -> TextConfig:
    return dataclasses.replace(
        _GEMMA_2B,
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=heads // 2,
        head_dim=head_dim,
        intermediate_size=inner,
        gemma2=Gemma2Config(
            query_pre_attn_scalar=scalar,
            attn_softcap=50.0,
            final_softcap=30.0,
            sliding_window=4096,
            sliding_layers=_every_other(layers),
        ),
    )


def _every_other(layers: int) -> tuple[bool, ...]:
    return tuple(layer % 2 == 0 for layer in range(layers))


_DECODERS: Mapping[str, TextConfig] = {
    "paligemma-3b": _GEMMA_2B,
    "paligemma2-3b": _gemma2(hidden=2304, layers=26, heads=8, inner=9216),
    "paligemma2-10b": _gemma2(hidden=3584, layers=42, heads=16, inner=14336),
    "paligemma2-28b": _gemma2(
        hidden=4608, layers=46, heads=32, inner=36864, head_dim=128, scalar=144
    ),
}
_RESOLUTIONS = (224, 448, 896)
MODELS: Mapping[str, tuple[int, TextConfig]] = {
    f"{name}-{size}": (size, text) for name, text in _DECODERS.items() for size in _RESOLUTIONS
}


def official(model: str, *, shrink: bool = False) -> tuple[VisionConfig, TextConfig]:
    """Sizes of a released model; a shrunk one keeps the resolution and the graphs' structure."""
    image_size, text = MODELS[model]
    vision = VisionConfig(
        image_size=image_size,
        patch_size=14,
        hidden_size=1152,
        num_layers=27,
        num_heads=16,
        intermediate_size=4304,
        layer_norm_eps=1e-6,
    )
    if not shrink:
        return vision, text
    small = {"num_layers": 2, "intermediate_size": 96, "hidden_size": 64}
    return dataclasses.replace(vision, num_heads=4, **small), _shrunk(text, **small)


def _shrunk(text: TextConfig, **small: int) -> TextConfig:
    """Keep the ratio of heads to KV heads, and of head size to the scale of the scores."""
    shrunk = dataclasses.replace(
        text,
        num_layers=small["num_layers"],
        intermediate_size=small["intermediate_size"],
        hidden_size=small["hidden_size"],
        num_heads=4,
        num_kv_heads=max(1, 4 * text.num_kv_heads // text.num_heads),
        head_dim=16,
        vocab_size=2240,
    )
    if text.gemma2 is None:
        return shrunk
    gemma2 = dataclasses.replace(
        text.gemma2,
        query_pre_attn_scalar=text.gemma2.query_pre_attn_scalar * 16 / text.head_dim,
        sliding_layers=_every_other(shrunk.num_layers),
    )
    return dataclasses.replace(shrunk, gemma2=gemma2)
