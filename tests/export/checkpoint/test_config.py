"""config.json as every release of transformers writes it, read as transformers itself does."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import GenerationConfig
from transformers import PaliGemmaConfig as Original

from paligemma_edge.export.checkpoint.config import Gemma2Config, PaliGemmaConfig, read_config
from paligemma_edge.runtime.errors import CheckpointError

Json = dict[str, Any]
HUB: Json = {
    "_vocab_size": 257152,
    "architectures": ["PaliGemmaForConditionalGeneration"],
    "bos_token_id": 2,
    "eos_token_id": 1,
    "hidden_size": 2048,
    "ignore_index": -100,
    "image_token_index": 257152,
    "model_type": "paligemma",
    "pad_token_id": 0,
    "projection_dim": 2048,
    "torch_dtype": "float32",
    "text_config": {
        "hidden_size": 2048,
        "intermediate_size": 16384,
        "model_type": "gemma",
        "num_attention_heads": 8,
        "num_hidden_layers": 18,
        "num_image_tokens": 256,
        "num_key_value_heads": 1,
        "torch_dtype": "float32",
        "vocab_size": 257216,
    },
    "vision_config": {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "model_type": "siglip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "num_image_tokens": 256,
        "patch_size": 14,
        "projection_dim": 2048,
        "projector_hidden_act": "gelu_fast",
        "torch_dtype": "float32",
        "vision_use_head": False,
    },
}


# PaliGemma 2 3B: what Gemma2Config fills in is absent, among it the number of heads.
HUB2: Json = {
    **HUB,
    "projection_dim": 2304,
    "torch_dtype": "bfloat16",
    "text_config": {
        "eos_token_id": [1, 107],
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "model_type": "gemma2",
        "num_hidden_layers": 26,
        "num_image_tokens": 256,
        "num_key_value_heads": 4,
        "torch_dtype": "bfloat16",
        "vocab_size": 257216,
    },
}
TEXT_28B: Json = {
    "hidden_size": 4608,
    "intermediate_size": 36864,
    "num_hidden_layers": 46,
    "num_attention_heads": 32,
    "num_key_value_heads": 16,
    "head_dim": 128,
    "query_pre_attn_scalar": 144,
}


def changed(base: Json = HUB, **sections: Json) -> Json:
    """A config with fields set in `text`, `vision` or at the `top`."""
    data = {**base, **sections.get("top", {})}
    for part in ("text", "vision"):
        data[f"{part}_config"] = {**base[f"{part}_config"], **sections.get(part, {})}
    return data


def read(tmp_path: Path, data: object) -> PaliGemmaConfig:
    (tmp_path / "config.json").write_text(json.dumps(data))
    return read_config(tmp_path)


DIALECTS: dict[str, Json] = {
    "hub 224": HUB,
    "hub 896": changed(vision={"image_size": 896}),
    "hub without strays": {k: v for k, v in HUB.items() if k != "_vocab_size"},
    "transformers 5": Original(**json.loads(json.dumps(HUB))).to_dict() | {"dtype": "float32"},
    "sections alone": {k: HUB[k] for k in ("text_config", "vision_config")}
    | {"model_type": "paligemma", "image_token_index": 300},
    "empty sections": {"text_config": {}, "vision_config": {}, "image_token_index": 9},
    "image_token_id": {k: v for k, v in HUB.items() if k != "image_token_index"}
    | {"image_token_id": 7},
    "rope_theta": changed(text={"rope_theta": 5000.0}),
    "rope_parameters": changed(
        text={"rope_parameters": {"rope_type": "default", "rope_theta": 7000.0}}
    ),
    "rope_parameters without theta": changed(text={"rope_parameters": {"rope_type": "default"}}),
    "default rope_scaling": changed(text={"rope_scaling": {"type": "default"}}),
    "gelu": changed(text={"hidden_act": "gelu", "hidden_activation": None}),
    "head_dim": changed(text={"head_dim": 64, "rms_norm_eps": 1e-5}),
    "sides": changed(vision={"layer_norm_eps": 1e-5, "image_size": 56, "patch_size": 7}),
    "eos list": changed(text={"eos_token_id": [1, 107]}),
    "hub 2 3b": HUB2,
    "hub 2 28b": changed(HUB2, text=TEXT_28B),
    "transformers 5, 2 28b": Original(
        **json.loads(json.dumps(changed(HUB2, text=TEXT_28B)))
    ).to_dict(),
    "only the type": changed(text={"model_type": "gemma2"}),
    "gemma2 alone": {"model_type": "paligemma", "text_config": {"model_type": "gemma2"}}
    | {"image_token_index": 9, "vision_config": {}},
    "no softcaps": changed(
        HUB2, text={"attn_logit_softcapping": None, "final_logit_softcapping": None}
    ),
    "other softcaps": changed(
        HUB2, text={"attn_logit_softcapping": 20.0, "final_logit_softcapping": 15.0}
    ),
    "no window": changed(HUB2, text={"sliding_window": None}),
    "other window": changed(HUB2, text={"sliding_window": 512}),
    "layer types": changed(
        HUB2,
        text={
            "num_hidden_layers": 3,
            "layer_types": ["full_attention", "full_attention", "sliding_attention"],
        },
    ),
    "rope_parameters of gemma2": changed(
        HUB2, text={"rope_parameters": {"rope_type": "default", "rope_theta": 7000.0}}
    ),
    "hybrid cache": changed(HUB2, text={"cache_implementation": "hybrid", "hidden_act": "gelu"}),
}


@pytest.mark.parametrize("data", DIALECTS.values(), ids=DIALECTS)
def test_a_config_is_read_as_by_transformers(tmp_path: Path, data: Json) -> None:
    config = read(tmp_path, data)
    original: Any = Original(**json.loads(json.dumps(data)))
    vision, text = original.vision_config, original.text_config
    assert vars(config.vision) == {
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "hidden_size": vision.hidden_size,
        "num_layers": vision.num_hidden_layers,
        "num_heads": vision.num_attention_heads,
        "intermediate_size": vision.intermediate_size,
        "layer_norm_eps": vision.layer_norm_eps,
    }
    assert vars(config.text) == {
        "hidden_size": text.hidden_size,
        "num_layers": text.num_hidden_layers,
        "num_heads": text.num_attention_heads,
        "num_kv_heads": text.num_key_value_heads,
        "head_dim": text.head_dim,
        "intermediate_size": text.intermediate_size,
        "vocab_size": text.vocab_size,
        "rope_theta": text.rope_parameters["rope_theta"],
        "rms_norm_eps": text.rms_norm_eps,
        "max_position_embeddings": text.max_position_embeddings,
        "gemma2": gemma2_of(text) if text.model_type == "gemma2" else None,
    }
    assert config.image_token_id == original.image_token_id
    assert (config.pad_token_id, config.bos_token_id) == (0, 2)


def gemma2_of(text: Any) -> Gemma2Config:  # noqa: ANN401 - a config of transformers
    return Gemma2Config(
        query_pre_attn_scalar=text.query_pre_attn_scalar,
        attn_softcap=text.attn_logit_softcapping,
        final_softcap=text.final_logit_softcapping,
        sliding_window=text.sliding_window,
        sliding_layers=tuple(kind == "sliding_attention" for kind in text.layer_types),
    )


def test_without_sections_it_is_the_released_model(tmp_path: Path) -> None:
    # transformers fills 4096, 257152 and 256000 here, which no released checkpoint has.
    config = read(tmp_path, {"model_type": "paligemma"})
    assert config == dataclasses.replace(read(tmp_path, HUB), eos_token_ids=())


def test_derived_sizes(tmp_path: Path) -> None:
    vision = read(tmp_path, changed(vision={"image_size": [448, 448]})).vision
    assert vision.image_tokens == 1024


def test_special_ids_are_read(tmp_path: Path) -> None:
    data = changed(text={"eos_token_id": [4, 107], "bos_token_id": 5, "pad_token_id": None})
    data = {k: v for k, v in data.items() if not k.endswith("os_token_id")}
    config = read(tmp_path, data)
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_ids) == (0, 5, (4, 107))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (changed(top={"model_type": "colpali"}), "colpali"),
        (changed(top={"architectures": ["ColPali"]}), "ColPali"),
        (changed(top={"model_type": "llava"}), "llava"),
        ({"model_type": "gemma", "architectures": ["GemmaForCausalLM"]}, "GemmaForCausalLM"),
        ({"model_type": "colpali", "architectures": ["ColPaliForRetrieval"]}, "ColPali gives"),
        (changed(HUB2, top={"architectures": ["ColPali"]}), "ColPali"),
        (
            {"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"]},
            "LlavaForConditionalGeneration",
        ),
        ({"model_type": "gemma", "hidden_size": 2048}, "Gemma alone reads no images"),
        (
            {"model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"]},
            "['Gemma2ForCausalLM'], wanted 'paligemma'",
        ),
        ({"type": "pi0", "input_features": {}}, "model_type 'pi0'"),
        (changed(HUB2, top={"model_type": "spatialvla"}), "spatialvla"),
        (changed(text={"model_type": "llama"}), "llama"),
        (changed(text={"model_type": "gemma3_text"}), "'gemma3_text', wanted 'gemma'"),
        (changed(text={"model_type": ["gemma2"]}), "['gemma2']"),
        (changed(HUB2, text={"hidden_activation": "gelu"}), "hidden_activation 'gelu'"),
        (changed(HUB2, text={"attn_logit_softcapping": 0}), "attn_logit_softcapping 0"),
        (changed(HUB2, text={"final_logit_softcapping": -30}), "final_logit_softcapping -30"),
        (changed(HUB2, text={"attn_logit_softcapping": True}), "softcapping True"),
        (changed(HUB2, text={"query_pre_attn_scalar": 0}), "query_pre_attn_scalar 0"),
        (changed(HUB2, text={"sliding_window": 0}), "sliding_window 0"),
        (changed(HUB2, text={"sliding_window": 4096.0}), "sliding_window 4096.0"),
        (changed(HUB2, text={"layer_types": ["full_attention"]}), "for each layer"),
        (changed(HUB2, text={"layer_types": ["chunked_attention"] * 26}), "chunked_attention"),
        (changed(HUB2, text={"num_attention_heads": 6}), "num_key_value_heads 4"),
        (changed(vision={"model_type": "clip_vision_model"}), "clip_vision_model"),
        (changed(vision={"vision_use_head": True}), "vision_use_head"),
        (changed(vision={"hidden_act": "gelu"}), "vision_config.hidden_act 'gelu'"),
        (changed(vision={"num_channels": 1}), "num_channels 1"),
        (changed(vision={"image_size": [224, 112]}), "image_size"),
        (changed(vision={"image_size": 7}), "image_size 7"),
        (changed(vision={"num_attention_heads": 7}), "num_attention_heads 7"),
        (changed(text={"hidden_act": "relu"}), "hidden_act 'relu'"),
        (changed(text={"hidden_activation": "silu"}), "hidden_activation 'silu'"),
        (changed(text={"attention_bias": True}), "attention_bias"),
        (changed(text={"use_bidirectional_attention": False}), "use_bidirectional_attention"),
        (changed(text={"tie_word_embeddings": False}), "text_config.tie_word_embeddings"),
        (changed(top={"tie_word_embeddings": False}), "tie_word_embeddings False"),
        (changed(text={"rope_scaling": {"type": "linear", "factor": 2.0}}), "linear"),
        (changed(text={"rope_scaling": "linear"}), "rope_scaling 'linear'"),
        (changed(text={"rope_parameters": {"rope_type": "yarn"}}), "yarn"),
        (changed(text={"rope_parameters": {"full_attention": {"rope_theta": 1}}}), "all layers"),
        (changed(text={"partial_rotary_factor": 0.5}), "partial_rotary_factor"),
        (changed(text={"rope_parameters": {"partial_rotary_factor": 0.5}}), "partial_rotary"),
        (changed(text={"head_dim": 63}), "head_dim 63"),
        (changed(text={"head_dim": 8}), "head_dim 8, wanted a multiple of 16"),
        (changed(text={"num_key_value_heads": 3}), "num_key_value_heads 3"),
        (changed(text={"vocab_size": "many"}), "vocab_size 'many'"),
        (changed(text={"num_hidden_layers": 0}), "num_hidden_layers 0"),
        (changed(text={"hidden_size": True}), "hidden_size True"),
        (changed(text={"rms_norm_eps": 0}), "rms_norm_eps 0"),
        (changed(text={"num_hidden_layers": 20_000_000}), "from 1 to 1000"),
        (changed(vision={"num_hidden_layers": 20_000_000}), "from 1 to 1000"),
        (changed(text={"max_position_embeddings": 10**9}), "from 1 to 1048576"),
        (changed(text={"max_position_embeddings": 257}), "wanted at least 258"),
        (changed(text={"head_dim": 2**20}), "head_dim 1048576"),
        (changed(text={"hidden_size": 2**30}), "hidden_size 1073741824"),
        (changed(text={"rope_theta": 1e-300}), "rope_theta 1e-300"),
        (changed(text={"rope_theta": float("inf")}), "rope_theta inf"),
        (changed(text={"rms_norm_eps": 1e-300}), "rms_norm_eps 1e-300"),
        (changed(top={"image_token_index": -1}), "image_token_index -1"),
        (changed(top={"text_config": [1]}) | {"text_config": [1]}, "text_config"),
        ([], "wanted a JSON object"),
    ],
)
def test_unsupported_configs(tmp_path: Path, data: object, message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        read(tmp_path, data)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_and_invalid_json(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_bytes(b'{"model_type": "pali\xff')
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        read_config(tmp_path)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=4,
)
FIELDS = [(part, name) for part in ("text", "vision") for name in HUB[f"{part}_config"]] + [
    ("top", name) for name in HUB
]
RARE = ["rope_parameters", "rope_scaling", "head_dim", "hidden_act", "rope_theta", "image_size"]
GEMMA2 = [
    "query_pre_attn_scalar",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "sliding_window",
    "layer_types",
    "model_type",
]


@given(
    st.sampled_from([HUB, HUB2]),
    st.sampled_from([*FIELDS, *(("text", n) for n in RARE + GEMMA2), ("vision", "image_size")]),
    VALUES,
)
def test_any_value_gives_a_config_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, base: Json, field: tuple[str, str], value: object
) -> None:
    folder = tmp_path_factory.getbasetemp() / "fuzz"
    folder.mkdir(exist_ok=True)
    try:
        assert read(folder, changed(base, **{field[0]: {field[1]: value}})).vision.image_tokens > 0
    except CheckpointError as error:
        assert "\n" not in str(error)


ENDS: tuple[object, ...] = (None, 1, [1, 107], [107, 1], [])


@pytest.mark.parametrize("generation", [*ENDS, "no file", "no field"])
@pytest.mark.parametrize("top", ENDS)
@pytest.mark.parametrize("text", [None, [4, 9]])
def test_the_ends_of_an_answer_are_those_of_transformers_generate(
    tmp_path: Path, generation: object, top: object, text: object
) -> None:
    if generation != "no file":
        given = {} if generation == "no field" else {"eos_token_id": generation}
        (tmp_path / "generation_config.json").write_text(json.dumps({"bos_token_id": 2, **given}))
    config = read(tmp_path, changed(top={"eos_token_id": top}, text={"eos_token_id": text}))
    # As `GenerationMixin.adjust_generation_fn` of transformers 5.23 does when a model is loaded.
    try:
        original = GenerationConfig.from_pretrained(tmp_path)
    except OSError:
        original = GenerationConfig.from_pretrained(
            tmp_path, config_file_name="config.json", _from_model_config=True
        )
    wanted = original.eos_token_id
    listed = wanted if isinstance(wanted, list) else [wanted]
    assert config.eos_token_ids == tuple(sorted(token for token in listed if token is not None))


@pytest.mark.parametrize("value", ["1", 1.0, True, [1, None], [[1]], {"a": 1}, [-1], -5, 2**40])
@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_ends_that_are_no_ids_are_refused(tmp_path: Path, value: object, file: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(changed(top={"eos_token_id": 1})))
    (tmp_path / file).write_text(json.dumps(changed(top={"eos_token_id": value})))
    with pytest.raises(CheckpointError, match=rf"^{file} has eos_token_id .* wanted a token id"):
        read_config(tmp_path)
    (tmp_path / file).write_text(json.dumps(changed(top={"eos_token_id": list(range(65))})))
    with pytest.raises(CheckpointError, match="at most 64"):
        read_config(tmp_path)


@pytest.mark.parametrize("value", ["<eos>", 1.0, True, {"id": 1}, [1, "107"], [-1], [[1]]])
def test_an_end_of_another_type_is_a_field_to_correct(value: object, tmp_path: Path) -> None:
    """transformers' `generate` refuses them too, or takes them for something else."""
    read(tmp_path, HUB)
    for name, other in (("generation_config.json", {}), ("config.json", HUB)):
        (tmp_path / name).write_text(json.dumps({**other, "eos_token_id": value}))
        with pytest.raises(CheckpointError) as caught:
            read_config(tmp_path)
        told = str(caught.value)
        assert f"{name} has eos_token_id {value!r}, wanted a token id, or a list" in told
        assert told.endswith("; correct the field, or save the checkpoint again")
        (tmp_path / "generation_config.json").unlink(missing_ok=True)
