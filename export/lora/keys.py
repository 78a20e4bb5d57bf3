"""LoRA key names: which tensor of an adapter's file belongs to which layer, in every layout.

Knows how PEFT builds a key (utils/save_and_load.py) and the key layouts of
`tensor_names`. Knows nothing of values.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, cast, get_args

from paligemma_edge.export.checkpoint.tensor_names import LM_HEAD, PREFIXES, source_key
from paligemma_edge.runtime.errors import CheckpointError

Part = Literal["lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector"]

_GAINS = ("norm.weight", "norm1.weight", "norm2.weight")  # vectors: a LoRA never changes them
_MODEL = re.compile(r"^(base_model\.model\.)?")
# PEFT removes the adapter's name when it saves; other programs keep it.
_LORA = re.compile(
    rf"(?P<module>.+)\.(?P<part>{'|'.join(get_args(Part))})(\.(?!bias)[^.]+)??(\.weight)?"
)
_ORIGINAL = re.compile(r"\.original_module\.")  # the base's own weights, beside the trained copy
_COPY = (re.compile(r"\.modules_to_save(?=\.)"), re.compile(r"\.modules_to_save\.[^.]+(?=\.)"))
_BASE = re.compile(r"\.base_layer(?=\.(weight|bias)$)")


@dataclass(frozen=True)
class LayerKeys:
    """The keys of one layer's change."""

    module: str  # its path in the model that was trained
    parts: Mapping[Part, str]


@dataclass(frozen=True)
class AdapterKeys:
    """A file's keys, sorted."""

    layers: dict[str, LayerKeys] = field(default_factory=dict)  # by internal layer name
    tensors: dict[str, list[str]] = field(default_factory=dict)  # by internal tensor name
    unknown: list[str] = field(default_factory=list)


def sort_keys(keys: Iterable[str], wanted: Iterable[str]) -> AdapterKeys:
    """Sort the keys of a file by the internal names that they belong to.

    `wanted` are the internal names of the base's tensors; the head counts as one more. Raises
    CheckpointError when two keys give one part of one layer.
    """
    names = {source_key(name, layout): name for name in [*wanted, LM_HEAD] for layout in PREFIXES}
    layers = {key: name for key, name in names.items() if not name.endswith(_GAINS)}
    sorted_keys = AdapterKeys()
    for key in keys:
        path = _MODEL.sub("", key)
        if _ORIGINAL.search(path):
            continue
        if (lora := _LORA.fullmatch(path)) and (weight := layers.get(f"{lora['module']}.weight")):
            layer, part = weight.removesuffix(".weight"), cast(Part, lora["part"])
            _add_part(sorted_keys, layer, lora["module"], part, key)
        elif name := next((names[plain] for plain in _unwrapped(path) if plain in names), None):
            sorted_keys.tensors.setdefault(name, []).append(key)
        else:
            sorted_keys.unknown.append(key)
    return sorted_keys


def _unwrapped(path: str) -> list[str]:
    """The paths that a tensor may have had before PEFT wrapped its module."""
    return [_BASE.sub("", path), *(copy.sub("", path) for copy in _COPY)]


def _add_part(keys: AdapterKeys, layer: str, module: str, part: Part, key: str) -> None:
    known = keys.layers.get(layer, LayerKeys(module, {}))
    if (other := known.parts.get(part)) is not None:
        raise CheckpointError(
            f"adapter holds {other!r} and {key!r}, two keys for one part of a layer; "
            "give one adapter, saved by PEFT"
        )
    keys.layers[layer] = LayerKeys(known.module, {**known.parts, part: key})
