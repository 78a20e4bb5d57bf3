"""Keys of every layout, and shapes compared with the published parameter counts."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from paligemma_edge.export.checkpoint.config import PaliGemmaConfig
from paligemma_edge.export.checkpoint.name_list import join_tensor_names
from paligemma_edge.export.checkpoint.tensor_names import (
    PREFIXES,
    Layout,
    is_buffer,
    match_names,
    source_key,
)
from paligemma_edge.export.checkpoint.tensor_shapes import contradictions, expected_shapes
from paligemma_edge.runtime.errors import CheckpointError
from samples.synthetic.models import official

VISION, TEXT = official("paligemma-3b-224")
CONFIG = PaliGemmaConfig(
    vision=VISION,
    text=TEXT,
    image_token_id=257152,
    pad_token_id=0,
    bos_token_id=2,
    eos_token_ids=(1,),
)
SECOND = replace(CONFIG, text=official("paligemma2-3b-224")[1])


@pytest.mark.parametrize(
    ("name", "layout", "key"),
    [
        (
            "vision.layers.3.q_proj.bias",
            "A",
            "vision_tower.vision_model.encoder.layers.3.self_attn.q_proj.bias",
        ),
        ("vision.layers.26.fc2.weight", "C", "model.vision_tower.encoder.layers.26.mlp.fc2.weight"),
        (
            "vision.layers.0.layer_norm1.weight",
            "B",
            "model.vision_tower.vision_model.encoder.layers.0.layer_norm1.weight",
        ),
        ("vision.patch_embedding.bias", "D", "vision_tower.embeddings.patch_embedding.bias"),
        ("vision.post_layernorm.weight", "C", "model.vision_tower.post_layernorm.weight"),
        ("projector.weight", "A", "multi_modal_projector.linear.weight"),
        ("decoder.embed_tokens.weight", "A", "language_model.model.embed_tokens.weight"),
        (
            "decoder.layers.17.o_proj.weight",
            "B",
            "model.language_model.layers.17.self_attn.o_proj.weight",
        ),
        (
            "decoder.layers.1.post_attention_layernorm.weight",
            "C",
            "model.language_model.layers.1.post_attention_layernorm.weight",
        ),
        (
            "decoder.layers.2.pre_feedforward_layernorm.weight",
            "A",
            "language_model.model.layers.2.pre_feedforward_layernorm.weight",
        ),
        (
            "decoder.layers.2.post_feedforward_layernorm.weight",
            "B",
            "model.language_model.layers.2.post_feedforward_layernorm.weight",
        ),
        ("decoder.norm.weight", "D", "language_model.model.norm.weight"),
        ("lm_head.weight", "A", "language_model.lm_head.weight"),
        ("lm_head.weight", "C", "lm_head.weight"),
    ],
)
def test_a_name_has_the_layouts_key(name: str, layout: Layout, key: str) -> None:
    assert source_key(name, layout) == key


@pytest.mark.parametrize("config", [CONFIG, SECOND], ids=["Gemma", "Gemma 2"])
@pytest.mark.parametrize("layout", PREFIXES)
def test_every_key_is_matched_to_its_name(layout: Layout, config: PaliGemmaConfig) -> None:
    names = [*expected_shapes(config), "lm_head.weight"]
    keys = [source_key(name, layout) for name in names]
    assert len(set(keys)) == len(names)
    assert match_names([*keys, "unknown.weight"], names) == dict(zip(names, keys, strict=True))


def test_two_keys_for_one_tensor() -> None:
    keys = [source_key("decoder.norm.weight", layout) for layout in ("A", "B")]
    with pytest.raises(CheckpointError, match="two keys for one tensor"):
        match_names(keys, expected_shapes(CONFIG))


@pytest.mark.parametrize(
    ("side", "vision"), [(224, 412_442_352), (448, 413_327_088), (896, 416_866_032)]
)
def test_the_shapes_count_as_many_parameters_as_published(side: int, vision: int) -> None:
    config = replace(CONFIG, vision=replace(VISION, image_size=side))
    counts = {name: math.prod(shape) for name, shape in expected_shapes(config).items()}
    assert sum(n for name, n in counts.items() if name.startswith("vision.")) == vision


@pytest.mark.parametrize(
    ("model", "projector", "embedding", "layers"),
    [
        ("paligemma-3b-224", 2_361_344, 526_778_368, 1_981_884_416),
        ("paligemma2-3b-224", 2_656_512, 592_625_664, 2_024_517_888),
        ("paligemma2-10b-448", 4_132_352, 921_862_144, 8_324_201_984),
        ("paligemma2-28b-896", 5_313_024, 1_185_251_328, 26_047_480_320),
    ],
)
def test_each_decoder_has_as_many_parameters_as_published(
    model: str, projector: int, embedding: int, layers: int
) -> None:
    shapes = expected_shapes(replace(CONFIG, text=official(model)[1]))
    counts = {name: math.prod(shape) for name, shape in shapes.items()}
    decoder = sum(n for name, n in counts.items() if name.startswith("decoder."))
    assert counts["projector.weight"] + counts["projector.bias"] == projector
    assert counts["decoder.embed_tokens.weight"] == embedding
    assert decoder - embedding == layers


def test_buffers_are_known() -> None:
    assert is_buffer("vision_tower.vision_model.embeddings.position_ids")
    assert is_buffer("language_model.model.layers.3.self_attn.rotary_emb.inv_freq")
    assert not is_buffer("language_model.model.norm.weight")


def test_contradictions_name_both_sides() -> None:
    shapes = expected_shapes(replace(CONFIG, vision=replace(VISION, image_size=448)))
    assert contradictions(CONFIG, shapes) == ["vision image tokens is 256, the tensors have 1024"]
    assert contradictions(CONFIG, {}) == []
    assert contradictions(SECOND, expected_shapes(CONFIG)) == [
        "text hidden_size is 2304, the tensors have 2048",
        "text intermediate_size is 9216, the tensors have 16384",
        "text kv heads x head_dim is 1024, the tensors have 256",
    ]
    narrow = expected_shapes(replace(CONFIG, text=replace(TEXT, head_dim=128, num_layers=17)))
    assert len(contradictions(CONFIG, narrow)) == 2


def test_names_of_many_layers_are_joined_on_one_line() -> None:
    names = [f"d.layers.{i}.q.weight" for i in (0, 1, 2, 5)] + ["d.norm", "d.layers.9.k.weight"]
    assert join_tensor_names(names) == "d.layers.9.k.weight, d.layers.{0-2,5}.q.weight, d.norm"
