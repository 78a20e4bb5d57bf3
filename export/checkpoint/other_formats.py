"""What a file or a folder is that is no checkpoint, and what to do with it: one clause each.

Knows names, first bytes and a few fields of other programs' files. Unpickles nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from paligemma_edge.export.checkpoint.content import has_file
from paligemma_edge.export.checkpoint.name_list import join_names

_PICKLE = "a pickle, which can run code and is not read"
_SAVE_AGAIN = "convert it with transformers: from_pretrained(source).save_pretrained(target)"
_FETCH = "fetch the same model as transformers saves it, with model.safetensors"
# Endings of file names → what such a file is, and what to do.
_KINDS: Mapping[str, tuple[str, str]] = {
    ".gguf": ("quantized weights of llama.cpp (GGUF)", _FETCH),
    ".msgpack": ("weights of JAX and Flax (msgpack)", _FETCH),
    ".h5": ("weights of Keras or TensorFlow (HDF5)", _FETCH),
    ".keras": ("a model of Keras", _FETCH),
    ".onnx": ("an ONNX graph, which was exported already", _FETCH),
    ".xml": ("a graph of OpenVINO, which was exported already", _FETCH),
    **dict.fromkeys((".tflite", ".task", ".litertlm"), ("a model of LiteRT", _FETCH)),
    **dict.fromkeys((".bin", ".pt", ".pth", ".ckpt", ".pkl"), (_PICKLE, _SAVE_AGAIN)),
}
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst")
# What a folder is searched for, in this order.
_PATTERNS = (
    *("*.gguf", "*.weights.h5", "*.keras", "flax_model*.msgpack", "tf_model*.h5", "openvino*.xml"),
    *("*.onnx", "onnx/*.onnx", "*.tflite", "*.task", "*.litertlm"),
    *("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl"),
)
_MAGIC: Mapping[bytes, str] = {
    b"\x80\x02": _PICKLE,
    b"\x80\x03": _PICKLE,
    b"\x80\x04": _PICKLE,
    b"\x80\x05": _PICKLE,
    b"\x93NUMPY": "a single array (npy), and no archive of them",
    b"GGUF": "quantized weights of llama.cpp (GGUF)",
    b"\x89HDF": "weights of Keras or TensorFlow (HDF5)",
}
# What a trainer saves beside weights.
_NO_WEIGHTS = ("training_args.bin", "optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state.pth")
_ORBAX = ("_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt")
_KERAS_FIELDS = ("registered_name", "class_name")
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_BASE = re.compile(r"[A-Za-z0-9._/-]{1,100}")
_MOST_JSON = 1 << 20


def other_file(path: Path) -> str | None:
    """What a file is that was given in place of a folder, by its name; None where unknown."""
    suffix = path.suffix.lower()
    if suffix in _KINDS:
        kind, advice = _KINDS[suffix]
        return f"is {kind}; {advice}, and give that folder"
    if suffix in (".safetensors", ".json", ".model"):
        return "is one file of a checkpoint; give its folder"
    return "is an archive; unpack it and give the folder" if suffix in _ARCHIVES else None


def content_of(path: Path) -> str | None:
    """What a file with the name of an npz holds, by its first bytes; None where unknown."""
    try:
        if not path.is_file():
            return None
        with path.open("rb") as file:
            start = file.read(8)
    except OSError:
        return None
    return next((kind for magic, kind in _MAGIC.items() if start.startswith(magic)), None)


def other_folder(directory: Path) -> str | None:
    """What a folder without safetensors is, and what to do; None where unknown."""
    if any(has_file(directory / name) for name in _WEIGHTS):
        return None
    clauses = (_bundle, _adapter, _keras, _other_program, _folder_around)
    return next((text for clause in clauses if (text := clause(directory))), None)


def _bundle(directory: Path) -> str | None:
    if "schema_version" not in _fields(directory / "manifest.json"):
        return None
    return (
        "is a bundle, which was exported already; use it as it is, or add variants to it by "
        "`paligemma-edge quantize`"
    )


def _adapter(directory: Path) -> str | None:
    if not any((directory / name).is_file() for name in _ADAPTER):
        return None
    base = _fields(directory / _ADAPTER[0]).get("base_model_name_or_path")
    base = base if isinstance(base, str) and _BASE.fullmatch(base) else "BASE"
    return (
        "is an adapter, and no whole checkpoint; give its base as CHECKPOINT and the adapter by "
        f"--adapter: `paligemma-edge export {base} BUNDLE --adapter {directory.name}`"
    )


def _keras(directory: Path) -> str | None:
    if not any(name in _fields(directory / "config.json") for name in _KERAS_FIELDS):
        return None
    return f"is a preset of Keras; {_FETCH}"


def _other_program(directory: Path) -> str | None:
    for pattern in _PATTERNS:
        if names := sorted({path.name for path in directory.glob(pattern)} - set(_NO_WEIGHTS)):
            kind, advice = _KINDS[Path(names[0]).suffix.lower()]
            return f"holds {join_names(names)}, {kind}, and no safetensors; {advice}"
    if any((directory / name).exists() for name in _ORBAX):
        return f"is a checkpoint of Orbax, which holds JAX arrays; {_FETCH}"
    return None


def _folder_around(directory: Path) -> str | None:
    """As a trainer and the Hub's cache lay checkpoints: each in a folder of its own."""
    found = sorted(folder.relative_to(directory).as_posix() for folder in _inner(directory))
    if not found:
        return None
    return f"holds no checkpoint itself; give the folder in it: {join_names(found)}"


def _inner(directory: Path) -> Iterator[Path]:
    for pattern in ("*/config.json", "snapshots/*/config.json"):
        for path in directory.glob(pattern):
            if any((path.parent / name).is_file() for name in _WEIGHTS):
                yield path.parent


def _fields(path: Path) -> Mapping[str, Any]:
    """The object that a small JSON file holds; none where it is something else."""
    try:
        if not path.is_file():
            return {}
        with path.open("rb") as file:
            data = json.loads(file.read(_MOST_JSON))
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}
