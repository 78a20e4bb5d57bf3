"""The original as transformers loads it, with LoRA adapters as peft merges them, in float32.

peft is imported only if there are adapters: it is not a package of the extra `verify`.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from transformers import PaliGemmaForConditionalGeneration

from paligemma_edge.export.checkpoint.open import open_checkpoint
from paligemma_edge.runtime.errors import CheckpointError, MissingExtraError

_DTYPES = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
}


def load_original(directory: Path, adapters: Sequence[Path] = ()) -> Any:  # noqa: ANN401 - no types
    """transformers' model of a checkpoint directory, in float32 with eager attention.

    Raises what transformers raises; with adapters also MissingExtraError without peft, and
    CheckpointError if peft cannot merge them.
    """
    if not adapters:
        return _load(directory, torch.float32)
    state = _merged_state(directory, adapters)
    # A model loaded in bfloat16 has a rounded embedding scale, so only its weights are taken over.
    original = _load(directory, torch.float32)
    original.load_state_dict(state)
    return original


def _merged_state(directory: Path, adapters: Sequence[Path]) -> Any:  # noqa: ANN401 - as above
    """The weights, merged in the checkpoint's own dtype, to which the bundle rounds too."""
    try:
        peft: Any = importlib.import_module("peft")
    except ModuleNotFoundError as missing:
        if missing.name != "peft":
            raise
        raise MissingExtraError(
            "the package peft is not installed, and adapters are verified with it; "
            "run: pip install peft"
        ) from None
    model = _load(directory, _DTYPES[open_checkpoint(directory).dtype])
    for adapter in adapters:
        model = _merge(peft, model, adapter)
    return model.state_dict()


def _load(directory: Path, dtype: torch.dtype) -> Any:  # noqa: ANN401 - as above
    return PaliGemmaForConditionalGeneration.from_pretrained(
        directory, dtype=dtype, attn_implementation="eager", local_files_only=True
    )


def _merge(peft: Any, model: Any, adapter: Path) -> Any:  # noqa: ANN401 - as above
    try:
        return peft.PeftModel.from_pretrained(
            model, str(adapter), local_files_only=True
        ).merge_and_unload()
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"peft cannot merge {adapter} ({reason}); give the adapters that the bundle was "
            "exported with, and the base that they were trained on"
        ) from None
