"""The adapter_config.json of a LoRA: each layer's rank and scale, and whether it is supported.

Knows PEFT's field names and rules (peft 0.21, tuners/lora/config.py). Never looks at a tensor.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from paligemma_edge.export.checkpoint.config import read_json
from paligemma_edge.export.checkpoint.config_fields import Json
from paligemma_edge.export.checkpoint.content import has_file
from paligemma_edge.runtime.errors import CheckpointError
from paligemma_edge.runtime.printable import short_line

CONFIG_FILE = "adapter_config.json"

_MOST_RANK = 2**16
_MOST_ALPHA = 1e9

# Fields that change no merged weight: how it was trained, and what the tensors show anyway.
_WITHOUT_EFFECT = frozenset(
    (
        *("auto_mapping", "base_model_name_or_path", "revision", "task_type", "peft_version"),
        *("inference_mode", "lora_dropout", "target_modules", "exclude_modules"),
        *("layers_to_transform", "layers_pattern", "modules_to_save", "bias"),
        *("fan_in_fan_out", "megatron_core", "qalora_group_size", "runtime_config"),
        *("ensure_weight_tying", "loftq_config", "eva_config", "corda_config", "lora_ga_config"),
    )
)
_USED = frozenset(
    (
        *("peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern"),
        *("use_rslora", "use_dora", "init_lora_weights"),
    )
)
# Initializations that leave the base's weights unchanged; others change them.
_PLAIN_INITIALIZATIONS = (True, False, None, "gaussian", "eva", "orthogonal")
_WHY: Mapping[str, str] = {
    "lora_bias": "a bias of LoRA's own is not merged",
    "alora_invocation_tokens": "an aLoRA counts for some tokens only, and cannot be merged",
    "trainable_token_indices": "tokens trained by themselves would change the head too",
    "layer_replication": "the model would have other layers than its checkpoint",
    "target_parameters": "PaliGemma has no such parameters",
}


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Rank and scale of every layer."""

    rank: int
    alpha: float
    rank_pattern: Mapping[str, int]  # regular expressions on the ends of module paths
    alpha_pattern: Mapping[str, float]
    rslora: bool
    dora: bool

    def rank_of(self, module: str) -> int:
        """The rank of a layer; `module` is its path in the model that was trained."""
        return self.rank_pattern.get(_pattern(self.rank_pattern, module), self.rank)

    def scale_of(self, module: str) -> float:
        """What B·A is multiplied by: alpha / r, or alpha / √r with rsLoRA."""
        alpha = self.alpha_pattern.get(_pattern(self.alpha_pattern, module), self.alpha)
        rank = self.rank_of(module)
        return alpha / (math.sqrt(rank) if self.rslora else rank)


def _pattern(patterns: Mapping[str, object], module: str) -> str:
    """The first pattern that matches the whole path, or its end after a dot: peft's own rule."""
    matching = (key for key in patterns if re.match(rf"(.*\.)?({key})$", module))
    return next(matching, module)


def read_lora_config(directory: Path) -> LoraConfig:
    """Read `adapter_config.json`. Raises CheckpointError for an unsupported option."""
    path = directory / CONFIG_FILE
    if not has_file(path):
        raise CheckpointError(
            f"{directory} has no {CONFIG_FILE}; give the directory of a LoRA adapter as PEFT saves "
            "it"
        )
    data = read_json(path)
    _check_options(path, data)
    return LoraConfig(
        rank=_rank(path, "r", data.get("r", 8)),
        alpha=_alpha(path, "lora_alpha", data.get("lora_alpha", 8)),
        rank_pattern={k: _rank(path, k, v) for k, v in _patterns(path, data, "rank_pattern")},
        alpha_pattern={k: _alpha(path, k, v) for k, v in _patterns(path, data, "alpha_pattern")},
        rslora=_flag(path, data, "use_rslora"),
        dora=_flag(path, data, "use_dora"),
    )


def _check_options(path: Path, data: Json) -> None:
    if (kind := data.get("peft_type")) != "LORA":
        _reject(path, "peft_type", kind, "'LORA'; other kinds of adapters are not supported")
    start = data.get("init_lora_weights", True)
    if start not in _PLAIN_INITIALIZATIONS:
        _reject(
            path,
            "init_lora_weights",
            start,
            "a start that is known to leave the base as it is; save the adapter again with peft's "
            "save_pretrained(..., path_initial_model_for_weight_conversion=...)",
        )
    for name, value in data.items():
        if name not in _USED | _WITHOUT_EFFECT and value not in (None, False, {}, []):
            why = _WHY.get(name, "what it does is not known to this release")
            _reject(path, name, value, f"it switched off: {why}")


def _patterns(path: Path, data: Json, name: str) -> list[tuple[str, object]]:
    patterns = data.get(name) or {}
    if not isinstance(patterns, dict):
        _reject(path, name, patterns, "an object")
    for pattern in patterns:
        try:
            re.compile(rf"(.*\.)?({pattern})$")
        except (re.error, OverflowError, RecursionError) as error:
            _reject(path, name, pattern, f"regular expressions ({error})")
    return list(patterns.items())


def _rank(path: Path, name: str, value: object) -> int:
    if type(value) is not int or not 1 <= value <= _MOST_RANK:
        _reject(path, name, value, f"a rank from 1 to {_MOST_RANK}")
    return value


def _alpha(path: Path, name: str, value: object) -> float:
    if type(value) not in (int, float) or not -_MOST_ALPHA <= value <= _MOST_ALPHA:  # type: ignore[operator]
        _reject(path, name, value, f"a number from {-_MOST_ALPHA:g} to {_MOST_ALPHA:g}")
    return float(value)  # type: ignore[arg-type]


def _flag(path: Path, data: Json, name: str) -> bool:
    value = data.get(name) or False
    if not isinstance(value, bool):
        _reject(path, name, value, "true or false")
    return value


def _reject(path: Path, name: str, value: object, wanted: str) -> NoReturn:
    raise CheckpointError(f"{path} has {name} {short_line(repr(value), 100)}, wanted {wanted}")
