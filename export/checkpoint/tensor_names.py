"""Names of a PaliGemma's tensors: one internal name each, and its key in every layout.

Knows the key layouts that PaliGemma checkpoints have had (transformers' own
`conversion_mapping.py` and the files on the Hub). Knows nothing of files, shapes or values.

    A  files on the Hub, transformers up to 4.51, and newer releases saving what they loaded
    B  transformers 4.52 to 5.5 in memory
    C  transformers 5.6 and later in memory
    D  transformers 5.6 and later saving a model that was made new
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal

from paligemma_edge.runtime.errors import CheckpointError

Layout = Literal["A", "B", "C", "D"]

EMBEDDING = "decoder.embed_tokens.weight"
LM_HEAD = "lm_head.weight"  # tied: the same table as EMBEDDING, which a checkpoint may store twice

# Source prefix of each internal part, by layout.
PREFIXES: Mapping[Layout, Mapping[str, str]] = {
    "A": {
        "vision.": "vision_tower.vision_model.",
        "projector.": "multi_modal_projector.linear.",
        "decoder.": "language_model.model.",
        "lm_head.": "language_model.lm_head.",
    },
    "B": {
        "vision.": "model.vision_tower.vision_model.",
        "projector.": "model.multi_modal_projector.linear.",
        "decoder.": "model.language_model.",
        "lm_head.": "lm_head.",
    },
    "C": {
        "vision.": "model.vision_tower.",
        "projector.": "model.multi_modal_projector.linear.",
        "decoder.": "model.language_model.",
        "lm_head.": "lm_head.",
    },
    "D": {
        "vision.": "vision_tower.",
        "projector.": "multi_modal_projector.linear.",
        "decoder.": "language_model.model.",
        "lm_head.": "language_model.lm_head.",
    },
}
# Nested modules of transformers whose name the internal set leaves out.
_VISION_MODULES = {
    r"patch_embedding|position_embedding": "embeddings.",
    r"layers\.\d+": "encoder.",
}
_LAYER_MODULES = {
    r"[qkv]_proj|out_proj|o_proj": "self_attn.",
    r"fc[12]|gate_proj|up_proj|down_proj": "mlp.",
}
# Buffers that some releases stored beside the weights.
_BUFFERS = re.compile(r"(\.position_ids|\.rotary_emb\.inv_freq|\.embed_scale)$")


def source_key(name: str, layout: Layout) -> str:
    """Return the key under which `layout` stores the tensor with the internal name `name`."""
    part = name.split(".", 1)[0] + "."
    rest = name.removeprefix(part)
    if part == "vision.":
        rest = _nest(rest, r"", _VISION_MODULES)
    rest = _nest(rest, r"(?:encoder\.)?layers\.\d+\.", _LAYER_MODULES)
    return PREFIXES[layout][part] + rest


def _nest(rest: str, before: str, modules: Mapping[str, str]) -> str:
    for pattern, module in modules.items():
        rest = re.sub(rf"^({before})(?=(?:{pattern})\.)", rf"\g<1>{module}", rest)
    return rest


def is_buffer(key: str) -> bool:
    """Say whether a checkpoint's key is a known buffer that holds no weight."""
    return _BUFFERS.search(key) is not None


def match_names(keys: Iterable[str], wanted: Iterable[str]) -> dict[str, str]:
    """Map internal names to the keys that hold them; unknown keys are left out.

    Raises CheckpointError when two keys give one name: the layouts are mixed.
    """
    names = {source_key(name, layout): name for name in [*wanted, LM_HEAD] for layout in PREFIXES}
    key_of: dict[str, str] = {}
    for key in keys:
        if (name := names.get(key)) is None:
            continue
        if name in key_of:
            raise CheckpointError(
                f"checkpoint holds {key_of[name]!r} and {key!r}, two keys for one tensor; "
                "save it again with one release of transformers"
            )
        key_of[name] = key
    return key_of
