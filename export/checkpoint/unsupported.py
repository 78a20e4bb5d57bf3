"""Options of a config.json that the graphs do not compute: an error names the field.

Knows transformers' field names and what each of its models does with them. Reads no file.
"""

from __future__ import annotations

from collections.abc import Mapping

from paligemma_edge.export.checkpoint.config_fields import Json, reject, section
from paligemma_edge.runtime.errors import CheckpointError
from paligemma_edge.runtime.printable import short_line

_ARCHITECTURE = "PaliGemmaForConditionalGeneration"
# Tuples: a config may hold what cannot be hashed.
_TANH_GELU = ("gelu_pytorch_tanh", "gelu_new", "gelu_fast", "gelu_python_tanh")
_SIGLIP = ("siglip_vision_model", "siglip")
_DECODERS = ("gemma", "gemma2")
_SHOWN = 80  # characters of a value in a message
# Models that are easily taken for a PaliGemma, by model_type.
_OTHERS: Mapping[str, str] = {
    "colpali": "ColPali gives vectors to search with, and no answers",
    "gemma": "Gemma alone reads no images",
    "gemma2": "Gemma 2 alone reads no images",
    "gemma3": "Gemma 3 is another model, whose prompts and answers are a chat's",
    "siglip": "SigLIP alone gives no answers",
    "siglip_vision_model": "SigLIP alone gives no answers",
    "pi0": "pi0 gives motions of a robot, and no answers",
}


def check_supported(data: Json) -> None:
    """Raise CheckpointError for another model, or for an option that no graph computes."""
    vision, text = section(data, "vision_config"), section(data, "text_config")
    _check_model_type(data, text)
    _check_vision(vision)
    _check_text(text)
    for where, holder in (("", data), ("text_config.", text)):
        if holder.get("tie_word_embeddings") is False:
            reject(f"{where}tie_word_embeddings", False, "true: the head shares the embedding")


def _check_model_type(data: Json, text: Json) -> None:
    kind = data.get("model_type") or data.get("type") or "paligemma"  # "type" is LeRobot's
    architectures = data.get("architectures") or [_ARCHITECTURE]
    known = isinstance(architectures, list) and _ARCHITECTURE in architectures
    if kind != "paligemma" or not known:
        raise CheckpointError(
            f"config.json describes model_type {_short(kind)}, architectures "
            f"{_short(data.get('architectures'))}, wanted 'paligemma' and {_ARCHITECTURE!r}; "
            f"{_OTHERS.get(str(kind), 'models other than PaliGemma are not supported')}"
        )
    if (text_type := text.get("model_type") or "gemma") not in _DECODERS:
        reject("text_config.model_type", text_type, "'gemma' (PaliGemma) or 'gemma2' (PaliGemma 2)")


def _short(value: object) -> str:
    return short_line(repr(value), _SHOWN)


def _check_vision(vision: Json) -> None:
    kind = vision.get("model_type") or "siglip_vision_model"
    if kind not in _SIGLIP:
        reject("vision_config.model_type", kind, "'siglip_vision_model'")
    if vision.get("vision_use_head"):
        reject("vision_config.vision_use_head", True, "false: PaliGemma has no pooling head")
    if (channels := vision.get("num_channels", 3)) != 3:
        reject("vision_config.num_channels", channels, "3")
    # In SigLIP "gelu" is the exact one, which is not what the graph computes.
    if (act := vision.get("hidden_act") or "gelu_pytorch_tanh") not in _TANH_GELU:
        reject("vision_config.hidden_act", act, "'gelu_pytorch_tanh'")


def _check_text(text: Json) -> None:
    # In Gemma "gelu" has always meant the tanh approximation, in Gemma 2 it is the exact one.
    gelus = _TANH_GELU if text.get("model_type") == "gemma2" else (*_TANH_GELU, "gelu")
    if (act := text.get("hidden_activation") or _TANH_GELU[0]) not in gelus:
        reject("text_config.hidden_activation", act, f"{_TANH_GELU[0]!r}")
    if (act := text.get("hidden_act") or _TANH_GELU[0]) not in (*_TANH_GELU, "gelu"):
        reject("text_config.hidden_act", act, f"{_TANH_GELU[0]!r}")
    if text.get("attention_bias"):
        reject("text_config.attention_bias", True, "false")
    if text.get("use_bidirectional_attention") is False:
        reject("text_config.use_bidirectional_attention", False, "true: the prompt sees itself")
    for name in ("rope_scaling", "rope_parameters"):
        _check_rope(f"text_config.{name}", text.get(name) or {})
    if text.get("partial_rotary_factor") not in (None, 1):
        reject("text_config.partial_rotary_factor", text["partial_rotary_factor"], "1")


def _check_rope(name: str, rope: object) -> None:
    if not isinstance(rope, dict):
        reject(name, rope, "an object")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default" or any(isinstance(value, dict) for value in rope.values()):
        reject(name, rope, "one rope_type 'default' for all layers")
    if rope.get("partial_rotary_factor") not in (None, 1):
        reject(name, rope, "partial_rotary_factor 1")
