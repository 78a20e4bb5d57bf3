"""What a checkpoint's config.json says of the model, whichever release of transformers wrote it.

Fills the defaults that transformers 5.23 fills (SiglipVisionConfig, GemmaConfig,
PaliGemmaConfig). Never looks at a tensor.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from paligemma_edge.export.refusals import Json, refuse, refuse_unsupported, section
from paligemma_edge.runtime.errors import CheckpointError

CONFIG_FILE = "config.json"

# What an absent field of a present section means: SiglipVisionConfig, GemmaConfig.
_VISION_DEFAULTS: Json = {
    "image_size": 224,
    "patch_size": 16,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-6,
}
_TEXT_DEFAULTS: Json = {
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
# What an absent section means: the released model. transformers says intermediate_size 4096,
# vocabulary 257152 and image token 256000, which no released checkpoint has.
_VISION_ABSENT: Json = {
    "patch_size": 14,
    "hidden_size": 1152,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "intermediate_size": 4304,
}
_TEXT_ABSENT: Json = {
    "hidden_size": 2048,
    "num_hidden_layers": 18,
    "num_attention_heads": 8,
    "num_key_value_heads": 1,
    "intermediate_size": 16384,
    "vocab_size": 257216,
}
_IMAGE_TOKEN_ID = 257152

# Far beyond every PaliGemma, and small enough that nothing of such a size hangs the exporter.
_MOST_LAYERS = 1000
_MOST_POSITIONS = 2**20
_MOST_SIZE = 2**24  # widths, sides, heads, rows of the embedding
_MOST_ANGLES = 2**28  # of the rotary tables, which are 4 bytes each


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """Sizes of the SigLIP tower."""

    image_size: int
    patch_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    layer_norm_eps: float

    @property
    def image_tokens(self) -> int:
        """Patches of one picture."""
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Sizes of the Gemma decoder."""

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


@dataclass(frozen=True, kw_only=True)
class PaliGemmaConfig:
    """Sizes of the whole model, and the ids that config.json gives."""

    vision: VisionConfig
    text: TextConfig
    image_token_id: int
    pad_token_id: int
    bos_token_id: int
    eos_token_id: int  # the first one, where several are listed


def read_config(directory: Path) -> PaliGemmaConfig:
    """Read `config.json` of a checkpoint.

    Raises CheckpointError when it is absent, is no JSON, or describes another model.
    """
    data = read_json(directory / CONFIG_FILE)
    refuse_unsupported(data)
    image_token = {"image_token_id": _IMAGE_TOKEN_ID, **_present(data)}
    index = "image_token_index" if "image_token_index" in image_token else "image_token_id"
    vision = _vision({**_VISION_DEFAULTS, **_given(data, "vision_config", _VISION_ABSENT)})
    text = _text({**_TEXT_DEFAULTS, **_given(data, "text_config", _TEXT_ABSENT)})
    _require_room(vision, text)
    return PaliGemmaConfig(
        vision=vision,
        text=text,
        image_token_id=_integer(image_token, index, least=0),
        pad_token_id=_special_id(data, "pad_token_id", 0),
        bos_token_id=_special_id(data, "bos_token_id", 2),
        eos_token_id=_special_id(data, "eos_token_id", 1),
    )


def read_json(path: Path) -> Json:
    """Read a JSON object. Raises CheckpointError when there is none."""
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(
            f"{path.parent} has no {path.name}; give the directory of a PaliGemma checkpoint "
            "as transformers saves it"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} cannot be read as JSON ({error}); download or save the checkpoint again"
        ) from None
    if not isinstance(data, dict):
        raise CheckpointError(
            f"{path} holds a {type(data).__name__}, wanted a JSON object; "
            "download or save the checkpoint again"
        )
    return data


def _given(data: Json, name: str, absent: Json) -> Json:
    return absent if data.get(name) is None else _present(section(data, name))


def _present(values: Json) -> Json:
    return {name: value for name, value in values.items() if value is not None}


def _vision(values: Json) -> VisionConfig:
    vision = VisionConfig(
        image_size=_side(values, "image_size"),
        patch_size=_side(values, "patch_size"),
        hidden_size=_integer(values, "hidden_size"),
        num_layers=_integer(values, "num_hidden_layers", most=_MOST_LAYERS),
        num_heads=_integer(values, "num_attention_heads"),
        intermediate_size=_integer(values, "intermediate_size"),
        layer_norm_eps=_number(values, "layer_norm_eps", 1e-12, 1.0),
    )
    if vision.hidden_size % vision.num_heads:
        refuse("vision_config.num_attention_heads", vision.num_heads, "a divisor of hidden_size")
    if vision.image_size < vision.patch_size:
        refuse("vision_config.image_size", vision.image_size, "at least one patch")
    return vision


def _text(values: Json) -> TextConfig:
    rope = values.get("rope_scaling") or values.get("rope_parameters") or {}
    text = TextConfig(
        hidden_size=_integer(values, "hidden_size"),
        num_layers=_integer(values, "num_hidden_layers", most=_MOST_LAYERS),
        num_heads=_integer(values, "num_attention_heads"),
        num_kv_heads=_integer(values, "num_key_value_heads"),
        head_dim=_integer(values, "head_dim"),
        intermediate_size=_integer(values, "intermediate_size"),
        vocab_size=_integer(values, "vocab_size"),
        rope_theta=_number({**values, **_present(rope)}, "rope_theta", 1.0, 1e12),
        rms_norm_eps=_number(values, "rms_norm_eps", 1e-12, 1.0),
        max_position_embeddings=_integer(values, "max_position_embeddings", most=_MOST_POSITIONS),
    )
    if text.num_heads % text.num_kv_heads:
        refuse("text_config.num_key_value_heads", text.num_kv_heads, "a divisor of the heads")
    if text.head_dim % 2:
        refuse("text_config.head_dim", text.head_dim, "an even number, for the rotary halves")
    if text.head_dim * text.max_position_embeddings > _MOST_ANGLES:
        refuse("text_config.head_dim", text.head_dim, f"{_MOST_ANGLES} angles of all positions")
    return text


def _require_room(vision: VisionConfig, text: TextConfig) -> None:
    needed = vision.image_tokens + 2  # a picture, the first token, the newline
    if text.max_position_embeddings < needed:
        refuse(
            "text_config.max_position_embeddings",
            text.max_position_embeddings,
            f"at least {needed}, for one picture and a prompt",
        )


def _special_id(data: Json, name: str, default: int) -> int:
    # The top level first, as transformers' generation config reads them.
    values = {name: default, **_present(section(data, "text_config")), **_present(data)}
    if isinstance(values[name], list) and values[name]:
        values[name] = values[name][0]
    return _integer(values, name, least=0)


def _side(values: Json, name: str) -> int:
    value = values[name]
    if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
        value = value[0]
    return _integer({name: value}, name)


def _integer(values: Json, name: str, least: int = 1, most: int = _MOST_SIZE) -> int:
    value = values[name]
    if type(value) is not int or not least <= value <= most:
        refuse(name, value, f"a whole number from {least} to {most}")
    return value


def _number(values: Json, name: str, least: float, most: float) -> float:
    value = values[name]
    if type(value) not in (int, float) or not least <= value <= most:
        refuse(name, value, f"a number from {least:g} to {most:g}")
    return float(value)
