"""The model that a checkpoint's config.json describes, whichever transformers release wrote it.

Fills the defaults that transformers 5.23 fills (SiglipVisionConfig, PaliGemmaConfig; those of the
decoder are in `text_config`). Never looks at a tensor.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from paligemma_edge.export.checkpoint.config_fields import (
    MOST_LAYERS,
    Json,
    damaged,
    integer,
    number,
    present,
    reject,
    section,
    side,
)
from paligemma_edge.export.checkpoint.content import has_file, require_content
from paligemma_edge.export.checkpoint.text_config import Gemma2Config, TextConfig, read_text_config
from paligemma_edge.export.checkpoint.unsupported import check_supported
from paligemma_edge.runtime.errors import CheckpointError
from paligemma_edge.runtime.manifest import MOST_EOS_IDS
from paligemma_edge.runtime.printable import short_line

__all__ = [
    "Gemma2Config",
    "PaliGemmaConfig",
    "TextConfig",
    "VisionConfig",
    "parse_config",
    "read_config",
]

CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"

# What an absent field of a present section means: SiglipVisionConfig.
_VISION_DEFAULTS: Json = {
    "image_size": 224,
    "patch_size": 16,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-6,
}
# What an absent section means: the released model. transformers' own defaults are
# intermediate_size 4096 and image token 256000, which no released checkpoint has.
_VISION_ABSENT: Json = {
    "patch_size": 14,
    "hidden_size": 1152,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "intermediate_size": 4304,
}
_IMAGE_TOKEN_ID = 257152


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
        """Patches of one image."""
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True, kw_only=True)
class PaliGemmaConfig:
    """Sizes of the whole model, and the ids that config.json gives."""

    vision: VisionConfig
    text: TextConfig
    image_token_id: int
    pad_token_id: int
    bos_token_id: int
    eos_token_ids: tuple[int, ...]  # each ends an answer; none where no file names one


def read_config(directory: Path) -> PaliGemmaConfig:
    """Read `config.json` of a checkpoint, and the ends of answers in `generation_config.json`.

    As for transformers' `generate`, the latter alone says what ends an answer where it is there.
    Raises CheckpointError when there is no config.json, one is not valid JSON, or it describes
    another model.
    """
    config = parse_config(read_json(directory / CONFIG_FILE))
    generation = directory / GENERATION_FILE
    if not has_file(generation):
        return config
    eos_token_ids = _eos_token_ids(read_json(generation), GENERATION_FILE)
    return dataclasses.replace(config, eos_token_ids=eos_token_ids)


def parse_config(data: Json) -> PaliGemmaConfig:
    """Read the object that a config.json holds. Raises CheckpointError for another model."""
    check_supported(data)
    image_token = {"image_token_id": _IMAGE_TOKEN_ID, **present(data)}
    index = "image_token_index" if "image_token_index" in image_token else "image_token_id"
    vision = _vision({**_VISION_DEFAULTS, **_given_vision(data)})
    text = read_text_config(data)
    _check_length(vision, text)
    return PaliGemmaConfig(
        vision=vision,
        text=text,
        image_token_id=integer(image_token, index, least=0),
        pad_token_id=_special_id(data, "pad_token_id", 0),
        bos_token_id=_special_id(data, "bos_token_id", 2),
        eos_token_ids=_eos_token_ids({**present(section(data, "text_config")), **present(data)}),
    )


def read_json(path: Path) -> Json:
    """Read a JSON object. Raises CheckpointError when there is none that can be read."""
    require_content(path)
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(
            f"{path.parent} has no {path.name}; give the directory of a PaliGemma checkpoint "
            "as transformers saves it"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} cannot be read as JSON ({short_line(str(error))}); "
            "download or save the checkpoint again"
        ) from None
    if not isinstance(data, dict):
        raise CheckpointError(
            f"{path} holds a {type(data).__name__}, wanted a JSON object; "
            "download or save the checkpoint again"
        )
    return data


def _given_vision(data: Json) -> Json:
    absent = data.get("vision_config") is None
    return _VISION_ABSENT if absent else present(section(data, "vision_config"))


def _vision(values: Json) -> VisionConfig:
    vision = VisionConfig(
        image_size=side(values, "image_size"),
        patch_size=side(values, "patch_size"),
        hidden_size=integer(values, "hidden_size"),
        num_layers=integer(values, "num_hidden_layers", most=MOST_LAYERS),
        num_heads=integer(values, "num_attention_heads"),
        intermediate_size=integer(values, "intermediate_size"),
        layer_norm_eps=number(values, "layer_norm_eps", 1e-12, 1.0),
    )
    if vision.hidden_size % vision.num_heads:
        reject("vision_config.num_attention_heads", vision.num_heads, "a divisor of hidden_size")
    if vision.image_size < vision.patch_size:
        reject("vision_config.image_size", vision.image_size, "at least one patch")
    return vision


def _check_length(vision: VisionConfig, text: TextConfig) -> None:
    needed = vision.image_tokens + 2  # an image, the first token, the newline
    if text.max_position_embeddings < needed:
        reject(
            "text_config.max_position_embeddings",
            text.max_position_embeddings,
            f"at least {needed}, for one image and a prompt",
        )


def _special_id(data: Json, name: str, default: int) -> int:
    # The top level first, as transformers' generation config reads them.
    values = {name: default, **present(section(data, "text_config")), **present(data)}
    return integer(values, name, least=0)


def _eos_token_ids(values: Json, file: str = CONFIG_FILE) -> tuple[int, ...]:
    """One id or a list of them, as both of transformers' files may have."""
    value = values.get("eos_token_id")
    listed = [] if value is None else value if isinstance(value, list) else [value]
    if len(listed) > MOST_EOS_IDS or not all(type(i) is int and 0 <= i < 2**24 for i in listed):
        wanted = f"a token id, or a list of at most {MOST_EOS_IDS}"
        damaged("eos_token_id", value, wanted, file)
    return tuple(sorted(set(listed)))
