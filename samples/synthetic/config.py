"""The JSON files of a synthetic checkpoint, in each dialect of PaliGemma checkpoints.

hub            as in the released files: fields with default values are absent
transformers4  every field, with torch_dtype and rope_theta
transformers5  every field, with dtype and rope_parameters
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from paligemma_edge.export.checkpoint.config import Gemma2Config, PaliGemmaConfig

Dialect = Literal["hub", "transformers4", "transformers5"]
Json = dict[str, Any]

_HUB_DEFAULTS: Json = {
    "head_dim": 256,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 8192,
    "image_size": 224,
    "layer_norm_eps": 1e-6,
}
_HUB_GEMMA2_DEFAULTS: Json = {
    **_HUB_DEFAULTS,
    "num_attention_heads": 8,
    "query_pre_attn_scalar": 256,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "sliding_window": 4096,
}


def write_configs(directory: Path, config: PaliGemmaConfig, dtype: str, dialect: Dialect) -> None:
    """Write config.json, generation_config.json and preprocessor_config.json."""
    ends = list(config.eos_token_ids)
    ids = {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": ends if ends[1:] else ends[0],
        "pad_token_id": config.pad_token_id,
    }
    _write(directory / "config.json", {**_config(config, dtype, dialect), **ids})
    _write(directory / "generation_config.json", ids)
    _write(directory / "preprocessor_config.json", _preprocessor(config))


def _write(path: Path, data: Json) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def _config(config: PaliGemmaConfig, dtype: str, dialect: Dialect) -> Json:
    vision, text, gemma2 = _vision(config), _text(config), config.text.gemma2
    dtype_field = {"dtype" if dialect == "transformers5" else "torch_dtype": dtype}
    if dialect == "hub":
        vision = _without(_HUB_DEFAULTS, vision)
        text = _without(_HUB_DEFAULTS if gemma2 is None else _HUB_GEMMA2_DEFAULTS, text)
        text = {**text, **dtype_field, "num_image_tokens": config.vision.image_tokens}
        vision = {**vision, **dtype_field, "projector_hidden_act": "gelu_fast"}
    elif dialect == "transformers4":
        activation = None if gemma2 is None else "gelu_pytorch_tanh"
        text |= {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": activation}
    else:
        theta = text.pop("rope_theta")
        text |= {
            "rope_parameters": {"rope_theta": theta, "rope_type": "default"},
            "hidden_act": "gelu_pytorch_tanh",
            "use_bidirectional_attention": True,
            **({} if gemma2 is None else {"layer_types": _layer_types(gemma2)}),
        }
    return {
        "architectures": ["PaliGemmaForConditionalGeneration"],
        **dtype_field,
        "hidden_size": 2048,  # as stale as in the released files
        "image_token_index": config.image_token_id,
        "model_type": "paligemma",
        "projection_dim": config.text.hidden_size,
        "text_config": text,
        "vision_config": vision,
    }


def _without(defaults: Json, section: Json) -> Json:
    return {k: v for k, v in section.items() if k not in defaults or v != defaults[k]}


def _vision(config: PaliGemmaConfig) -> Json:
    vision = config.vision
    return {
        "hidden_size": vision.hidden_size,
        "image_size": vision.image_size,
        "intermediate_size": vision.intermediate_size,
        "layer_norm_eps": vision.layer_norm_eps,
        "model_type": "siglip_vision_model",
        "num_attention_heads": vision.num_heads,
        "num_hidden_layers": vision.num_layers,
        "patch_size": vision.patch_size,
        "projection_dim": config.text.hidden_size,
        "vision_use_head": False,
    }


def _text(config: PaliGemmaConfig) -> Json:
    text = config.text
    return {
        "head_dim": text.head_dim,
        "hidden_size": text.hidden_size,
        "intermediate_size": text.intermediate_size,
        "max_position_embeddings": text.max_position_embeddings,
        "model_type": "gemma" if text.gemma2 is None else "gemma2",
        "num_attention_heads": text.num_heads,
        "num_hidden_layers": text.num_layers,
        "num_key_value_heads": text.num_kv_heads,
        "rms_norm_eps": text.rms_norm_eps,
        "rope_theta": text.rope_theta,
        "vocab_size": text.vocab_size,
        **({} if text.gemma2 is None else _gemma2(text.gemma2)),
    }


def _gemma2(gemma2: Gemma2Config) -> Json:
    return {
        "attn_logit_softcapping": gemma2.attn_softcap,
        "final_logit_softcapping": gemma2.final_softcap,
        "query_pre_attn_scalar": int(gemma2.query_pre_attn_scalar),
        "sliding_window": gemma2.sliding_window,
    }


def _layer_types(gemma2: Gemma2Config) -> list[str]:
    kinds = {True: "sliding_attention", False: "full_attention"}
    return [kinds[sliding] for sliding in gemma2.sliding_layers]


def _preprocessor(config: PaliGemmaConfig) -> Json:
    side = config.vision.image_size
    return {
        "do_convert_rgb": None,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "SiglipImageProcessor",
        "image_seq_length": config.vision.image_tokens,
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "PaliGemmaProcessor",
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"height": side, "width": side},
    }
