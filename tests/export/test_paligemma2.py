"""What a PaliGemma 2 checkpoint must hold, and what its decoder's graph is made of."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from paligemma_edge.export.checkpoint.open import open_checkpoint
from paligemma_edge.export.graphs.decoder import build_decoder
from paligemma_edge.runtime.errors import CheckpointError

MakeCheckpoint = Callable[..., Path]

TEXT: dict[str, Any] = {
    "model_type": "gemma2",
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "query_pre_attn_scalar": 25,
}


def rewrite(folder: Path, **fields: object) -> Path:
    """Change the text_config of a checkpoint; None removes a field."""
    config = json.loads((folder / "config.json").read_text())
    text = {**config["text_config"], **fields}
    config["text_config"] = {k: v for k, v in text.items() if v is not None or k not in fields}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def decoder_of(folder: Path) -> ir.Model:
    checkpoint = open_checkpoint(folder)
    return build_decoder(checkpoint.config.text, checkpoint.tensors)


def attention(model: ir.Model) -> list[dict[str, object]]:
    """The attributes of each attention node of a decoder."""
    names = ("scale", "softcap", "causal", "local_window_size", "num_heads", "kv_num_heads")
    nodes = [node for node in model.graph if node.op_type == "GroupQueryAttention"]
    return [{k: node.attributes[k].value for k in names if k in node.attributes} for node in nodes]


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_layouts_give_the_same_tensors(dtype: str, make_checkpoint: MakeCheckpoint) -> None:
    first, *others = (
        open_checkpoint(make_checkpoint(text=TEXT, dtype=dtype, layout=layout)) for layout in "ABC"
    )
    names = {name.split(".")[-2] for name in first.tensors if "layernorm" in name}
    assert {"pre_feedforward_layernorm", "post_feedforward_layernorm"} < names
    for other in others:
        assert first.config == other.config
        assert first.tensors.keys() == other.tensors.keys()
        for name, tensor in first.tensors.items():
            assert tensor.tobytes() == other.tensors[name].tobytes(), name


@pytest.mark.parametrize(
    ("made", "fields", "message"),
    [
        (TEXT, {"model_type": "gemma"}, "4 unexpected: language_model.model.layers.{0-1}.post_f"),
        ({}, {"model_type": "gemma2"}, "4 missing: decoder.layers.{0-1}.post_feedforward_layern"),
        (
            TEXT,  # as in the released 3B's JSON, without the heads
            {"num_attention_heads": None, "head_dim": None, "num_key_value_heads": 4},
            "text heads x head_dim is 2048, the tensors have 64; text kv heads x head_dim is 1024",
        ),
        (TEXT, {"num_hidden_layers": 3, "layer_types": None}, "11 missing: decoder.layers.2"),
    ],
)
def test_a_config_that_contradicts_the_tensors(
    made: dict[str, Any], fields: dict[str, Any], message: str, make_checkpoint: MakeCheckpoint
) -> None:
    folder = rewrite(make_checkpoint(text=made), **fields)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    assert message in str(caught.value)


def test_scale_and_softcaps_are_those_of_the_config(make_checkpoint: MakeCheckpoint) -> None:
    model = decoder_of(make_checkpoint(text={**TEXT, "attn_logit_softcapping": 40.0}))
    wanted = {"scale": 0.2, "softcap": 40.0, "causal": 0, "num_heads": 4, "kv_num_heads": 2}
    assert attention(model) == [pytest.approx(wanted)] * 2
    assert operators(model).count("Tanh") == 1
    assert operators(model).count("RMSNormalization") == 4 * 2 + 1


def test_without_softcaps(make_checkpoint: MakeCheckpoint) -> None:
    off = {"attn_logit_softcapping": None, "final_logit_softcapping": None}
    model = decoder_of(make_checkpoint(text={**TEXT, **off}))
    assert all("softcap" not in attributes for attributes in attention(model))
    assert "Tanh" not in operators(model)


def test_a_paligemma_1_has_none_of_this(make_checkpoint: MakeCheckpoint) -> None:
    model = decoder_of(make_checkpoint())
    wanted = {"scale": 0.25, "causal": 0, "num_heads": 2, "kv_num_heads": 1}
    assert attention(model) == [wanted] * 2
    assert not {"Tanh", "Div"} & set(operators(model))
    assert operators(model).count("RMSNormalization") == 2 * 2 + 1
