"""Rotary position embedding (RoPE) of the decoder, as tables for `GroupQueryAttention`."""

from __future__ import annotations

import numpy as np

from paligemma_edge.export.checkpoint.text_config import TextConfig


def rotary_tables(config: TextConfig) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines of every position, float32 [max_position_embeddings, head_dim / 2]."""
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / config.head_dim
    frequencies = (1.0 / config.rope_theta**exponents).astype(np.float32)
    positions = np.arange(config.max_position_embeddings, dtype=np.float32)
    angles = np.outer(positions, frequencies).astype(np.float32)
    return np.cos(angles), np.sin(angles)
