"""A checkpoint, opened: its config and its tensors under internal names, still on disk.

Reads a directory of safetensors, single or sharded, in any of the key layouts of `tensor_names`,
or an npz of big_vision. Knows nothing of graphs. All tensors that are missing, unexpected or of
another shape are listed in one error.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from paligemma_edge.export.checkpoint.big_vision import read_big_vision
from paligemma_edge.export.checkpoint.config import (
    CONFIG_FILE,
    PaliGemmaConfig,
    read_config,
    read_json,
)
from paligemma_edge.export.checkpoint.content import has_file
from paligemma_edge.export.checkpoint.mask_decoder_file import MASK_DECODER_FILE
from paligemma_edge.export.checkpoint.name_list import join_names, join_tensor_names
from paligemma_edge.export.checkpoint.npz_paths import is_npz_name, npz_files
from paligemma_edge.export.checkpoint.other_formats import other_file, other_folder
from paligemma_edge.export.checkpoint.safetensors_file import read_safetensors
from paligemma_edge.export.checkpoint.tensor_names import (
    EMBEDDING,
    LM_HEAD,
    is_buffer,
    match_names,
)
from paligemma_edge.export.checkpoint.tensor_shapes import (
    Shape,
    contradictions,
    expected_shapes,
)
from paligemma_edge.export.checkpoint.tensors import CheckpointTensor, same_values
from paligemma_edge.runtime.errors import CheckpointError

__all__ = ["Checkpoint", "CheckpointTensor", "open_checkpoint"]

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_LONGEST_NAME = 255  # bytes, on every common file system
_RELEASED = re.compile(r"paligemma2?-[A-Za-z0-9.-]+")  # as google names its repositories


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A supported PaliGemma whose tensors are complete and of the right shapes."""

    config: PaliGemmaConfig
    tensors: Mapping[str, CheckpointTensor]  # by internal name
    files: tuple[Path, ...]  # those that hold the tensors
    directory: Path | None  # holds transformers' other files; None for an npz

    @property
    def dtype(self) -> ir.DataType:
        """The embedding table's dtype; other tensors may have their own."""
        return self.tensors[EMBEDDING].dtype

    @property
    def weights_directory(self) -> Path:
        """The directory of the weights; of an npz, the one that it lies in."""
        return self.directory or self.files[0].parent


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a directory as transformers saves it, or an npz as big_vision does.

    `path` of an npz in parts is NAME.npz or any of its parts. Reads headers only, and the LM head
    if one is stored. Raises CheckpointError when it is not a complete PaliGemma.
    """
    if is_npz_name(path) and not os.path.isdir(path):  # noqa: PTH112 - as below
        files = npz_files(path)
        config, tensors = read_big_vision(files)
        return Checkpoint(config=config, tensors=tensors, files=files, directory=None)
    return _open_directory(path)


def _open_directory(directory: Path) -> Checkpoint:
    if not os.path.isdir(directory):  # noqa: PTH112 - Path raises where a name is too long
        other = other_file(directory) if os.path.exists(directory) else None  # noqa: PTH110 - same
        raise CheckpointError(
            f"{directory} {other}"
            if other
            else f"{directory} is not a directory; give {_hub_name(directory)}the directory of a "
            "PaliGemma checkpoint as transformers saves it, or the npz of big_vision"
        )
    _reject_folder_of_npz(directory)
    if other := other_folder(directory):
        raise CheckpointError(f"{directory} {other}")
    config = read_config(directory)
    files = _weight_files(directory)
    tensors = _match(config, _read_all(files))
    return Checkpoint(config=config, tensors=tensors, files=files, directory=directory)


def _hub_name(path: Path) -> str:
    """The repository that a bare name of a released model probably means."""
    name = path.name.lower()
    if len(path.parts) != 1 or _RELEASED.fullmatch(name) is None:
        return ""
    return f"google/{name}, its name on the Hugging Face Hub, or "


def _reject_folder_of_npz(directory: Path) -> None:
    if has_file(directory / CONFIG_FILE):
        return
    names = (path.name for path in directory.glob("*.npz*") if is_npz_name(path))
    if archives := sorted(name for name in names if name != MASK_DECODER_FILE):
        raise CheckpointError(
            f"{directory} holds {archives[0]}{' and more' if archives[1:] else ''} and no "
            f"{CONFIG_FILE}; give the path of the npz itself"
        )


def _weight_files(directory: Path) -> tuple[Path, ...]:
    if has_file(directory / WEIGHTS_FILE):
        return (directory / WEIGHTS_FILE,)
    if has_file(directory / INDEX_FILE):
        return _shards(directory)
    raise CheckpointError(
        f"{directory} has neither {WEIGHTS_FILE} nor {INDEX_FILE}; give the directory of a whole "
        "PaliGemma checkpoint"
    )


def _shards(directory: Path) -> tuple[Path, ...]:
    weight_map = read_json(directory / INDEX_FILE).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"{directory / INDEX_FILE} has no weight_map; download or save the checkpoint again"
        )
    names = sorted(set(map(str, weight_map.values())))
    if odd := [name for name in names if not _is_plain_name(name)]:
        raise CheckpointError(
            f"{INDEX_FILE} names {join_names(odd)}, wanted plain file names; "
            "download the checkpoint again from a source that you trust"
        )
    if absent := [name for name in names if not has_file(directory / name)]:
        raise CheckpointError(
            f"{directory} lacks {join_names(absent)}, which {INDEX_FILE} names; finish the download"
        )
    return tuple(directory / name for name in names)


def _is_plain_name(name: str) -> bool:
    """A name of a file in the same folder, on any system."""
    plain = Path(name).name == name and not set(name) & set("/\\\0") and name.strip(".")
    try:
        return bool(plain) and len(os.fsencode(name)) <= _LONGEST_NAME
    except UnicodeEncodeError:  # half a character
        return False


def _read_all(files: tuple[Path, ...]) -> dict[str, CheckpointTensor]:
    stored: dict[str, CheckpointTensor] = {}
    for path in files:
        tensors = read_safetensors(path, ignore=is_buffer)
        if twice := stored.keys() & tensors.keys():
            raise CheckpointError(
                f"{path} repeats tensors of another shard: {join_tensor_names(twice)}; "
                "save the checkpoint again"
            )
        stored |= tensors
    return stored


def _match(
    config: PaliGemmaConfig, stored: Mapping[str, CheckpointTensor]
) -> dict[str, CheckpointTensor]:
    expected = expected_shapes(config)
    keys = match_names(stored, expected)
    head = keys.pop(LM_HEAD, None)
    if head is not None and EMBEDDING in keys:
        _require_equal(stored[keys[EMBEDDING]], stored[head])
    elif head is not None:
        keys[EMBEDDING] = head
    shapes = {name: tuple(stored[key].shape.numpy()) for name, key in keys.items()}
    known = {*keys.values(), head}
    _require_complete(config, expected, shapes, unexpected=[k for k in stored if k not in known])
    return {name: stored[keys[name]] for name in expected}


def _require_complete(
    config: PaliGemmaConfig,
    expected: Mapping[str, Shape],
    shapes: Mapping[str, Shape],
    unexpected: list[str],
) -> None:
    if problems := contradictions(config, shapes):
        raise CheckpointError(
            f"config.json contradicts the tensors: {'; '.join(problems)}; "
            "use the config.json that was saved with these weights"
        )
    missing = [name for name in expected if name not in shapes]
    misshapen = [
        f"{name} is {list(shapes[name])} and not {list(shape)}"
        for name, shape in expected.items()
        if name in shapes and shapes[name] != shape
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen))
    listed = [f"{len(n)} {kind}: {join_tensor_names(n)}" for kind, n in kinds if n]
    if listed:
        raise CheckpointError(
            f"checkpoint's tensors are not a PaliGemma's: {'; '.join(listed)}; "
            "save it again with transformers"
        )


def _require_equal(embedding: CheckpointTensor, head: CheckpointTensor) -> None:
    if not same_values(embedding, head):
        raise CheckpointError(
            f"{head.name!r} differs from {embedding.name!r}; PaliGemma's head is its embedding "
            "table, so a checkpoint with two tables cannot be exported"
        )
