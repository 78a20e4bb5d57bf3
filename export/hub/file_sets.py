"""Which files of a Hub repository are fetched: for a checkpoint, an adapter or a tokenizer."""

from __future__ import annotations

from paligemma_edge.export.checkpoint.license_files import LICENSE_NAMES
from paligemma_edge.export.checkpoint.mask_decoder_file import MASK_DECODER_FILE
from paligemma_edge.runtime.errors import CheckpointError
from paligemma_edge.runtime.hub.file_set import FileSet

_TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json", "added_tokens.json")
# What the exporter reads, and what transformers reads in `verify`. Pickles, the npz of JAX's
# weights and weights for other programs are not fetched.
CHECKPOINT = FileSet(
    "a PaliGemma as transformers saves it",
    (
        "config.json",
        "model*.safetensors",
        "model.safetensors.index.json",
        *_TOKENIZER_FILES,
        *("preprocessor_config.json", "processor_config.json"),
        *("generation_config.json", "tokenizer_config.json", "special_tokens_map.json"),
        MASK_DECODER_FILE,
        *LICENSE_NAMES,
    ),
    ("model.safetensors", "model.safetensors.index.json"),
    "give a LoRA adapter by --adapter, beside its base, and an npz by its path",
    CheckpointError,
)
ADAPTER = FileSet(
    "a LoRA adapter as PEFT saves it",
    ("adapter_config.json", "adapter_model.safetensors"),
    ("adapter_model.safetensors",),
    "load it with peft and save it again",
    CheckpointError,
)
TOKENIZER = FileSet(
    "a PaliGemma's tokenizer",
    _TOKENIZER_FILES,
    _TOKENIZER_FILES[:2],
    "give its path",
    CheckpointError,
)
