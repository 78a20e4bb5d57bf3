"""The manifest: values that make no sense are refused before anything is run with them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from paligemma_edge import PaliGemma
from paligemma_edge.runtime.bundle.bundle import Bundle
from paligemma_edge.runtime.errors import BundleError

NONSENSE: list[tuple[str, str, Any]] = [
    ("model", "image_tokens", 0),
    ("model", "image_tokens", -64),
    ("model", "num_layers", 0),
    ("model", "num_kv_heads", 0),
    ("model", "head_dim", 1 << 40),
    ("model", "vocab_size", 0),
    ("model", "max_length", 8),
    ("tokenizer", "eos_ids", []),
    ("tokenizer", "eos_ids", [-1]),
    ("tokenizer", "eos_ids", [1, 1]),
    ("tokenizer", "eos_ids", [1 << 20]),
    ("tokenizer", "eos_ids", list(range(65))),
    ("tokenizer", "bos_id", 1 << 20),
    ("tokenizer", "first_loc_id", 1 << 20),
    ("tokenizer", "first_seg_id", 0),
    ("tokenizer", "image_id", 1 << 20),
    ("image", "size", 0),
    ("image", "size", 10**6),
    ("image", "rescale_factor", float("nan")),
    ("image", "std", [0.5, 0.0, 0.5]),
    ("image", "mean", [float("inf"), 0.5, 0.5]),
]


@pytest.mark.parametrize(("part", "name", "value"), NONSENSE)
def test_a_value_out_of_range_is_one_line(
    shapes_copy: Path, part: str, name: str, value: object
) -> None:
    path = shapes_copy / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest[part][name] = value
    path.write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="wanted") as error:
        Bundle.open(shapes_copy)
    assert "\n" not in str(error.value)


BELONG_ELSEWHERE: list[tuple[str, str, int, str]] = [
    ("model", "num_layers", 3, "decoder has an input 'past_key_values.3.key'"),
    ("model", "num_layers", 5, "decoder lacks the input 'past_key_values.4.key'"),
    ("model", "head_dim", 32, "'past_key_values.0.key' is"),
    ("model", "num_kv_heads", 2, "'past_key_values.0.key' is"),
    ("model", "image_tokens", 16, "vision_encoder's output 'last_hidden_state'"),
    ("model", "hidden_size", 96, "'image_features' is"),
    ("model", "vocab_size", 4096, "decoder's output 'logits'"),
    ("image", "size", 224, "vision_encoder's input 'pixel_values'"),
]


@pytest.mark.parametrize(("part", "name", "value", "message"), BELONG_ELSEWHERE)
def test_a_manifest_of_other_graphs_is_refused(
    shapes_copy: Path, part: str, name: str, value: int, message: str
) -> None:
    path = shapes_copy / "manifest.json"
    manifest = json.loads(path.read_text())
    assert manifest[part][name] != value
    manifest[part][name] = value
    path.write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=re.escape(message)):
        PaliGemma(shapes_copy, device="cpu")
