"""Files and folders that are no checkpoint are named, and told what to do with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from paligemma_edge.export.checkpoint.open import open_checkpoint
from paligemma_edge.export.verify.verify import verify
from paligemma_edge.runtime.bundle.bundle import Bundle
from paligemma_edge.runtime.errors import BundleError, CheckpointError

KERAS = {"module": "keras_hub.src.models", "class_name": "PaliGemmaBackbone", "config": {}}
# Files → what the message names.
FOLDERS: Mapping[str, tuple[Mapping[str, object], tuple[str, ...]]] = {
    "an adapter": (
        {
            "adapter_config.json": {"base_model_name_or_path": "google/paligemma-3b-pt-224"},
            "adapter_model.safetensors": "",
        },
        ("is an adapter", "export google/paligemma-3b-pt-224 BUNDLE --adapter x`"),
    ),
    "an adapter as a pickle": (
        {"adapter_config.json": {}, "adapter_model.bin": "", "training_args.bin": ""},
        ("is an adapter", "export BASE BUNDLE --adapter x`"),
    ),
    "an adapter that commands a terminal": (
        {"adapter_config.json": {"base_model_name_or_path": "\x1b[2J\n`rm -r /`"}},
        ("export BASE BUNDLE --adapter x`",),
    ),
    "a preset of Keras": (
        {"config.json": KERAS, "model.weights.h5": "", "task.json": {}},
        ("is a preset of Keras", "as transformers saves it"),
    ),
    "a GGUF": ({"a.gguf": "GGUF", "config.json": {}}, ("a.gguf", "llama.cpp")),
    "pickles": (
        {"config.json": {}, "pytorch_model-00001-of-00002.bin": "", "training_args.bin": ""},
        ("pytorch_model-00001-of-00002.bin, a pickle, which can run code", "save_pretrained"),
    ),
    "what a trainer leaves": ({"training_args.bin": ""}, ("has no config.json",)),
    "Flax": ({"config.json": {}, "flax_model.msgpack": ""}, ("JAX and Flax",)),
    "TensorFlow": ({"config.json": {}, "tf_model.h5": ""}, ("TensorFlow",)),
    "ONNX": ({"config.json": {}, "onnx/decoder.onnx": ""}, ("decoder.onnx, an ONNX graph",)),
    "OpenVINO": ({"openvino_model.xml": "", "openvino_model.bin": ""}, ("OpenVINO",)),
    "LiteRT": ({"paligemma.task": ""}, ("LiteRT",)),
    "Orbax": ({"_METADATA": "", "d/x": ""}, ("Orbax",)),
    "a trainer's folder": (
        {"checkpoint-500/config.json": {}, "checkpoint-500/model.safetensors": ""},
        ("holds no checkpoint itself; give the folder in it: checkpoint-500",),
    ),
    "a repository in the Hub's cache": (
        {"snapshots/a1/config.json": {}, "snapshots/a1/model.safetensors.index.json": {}},
        ("snapshots/a1",),
    ),
    "names without end": ({f"{n}.gguf": "" for n in range(99)}, ("and 89 more",)),
    "a name that commands a terminal": ({"\x1b[2J\n.gguf": ""}, ("x1b[2J",)),
    "JSON of another form": (
        {"config.json": "[1]", "adapter_config.json": "[[", "manifest.json": "[]"},
        ("is an adapter",),
    ),
    "nothing": ({}, ("has no config.json",)),
}
FILES = {
    "a.gguf": "llama.cpp",
    "pytorch_model.bin": "a pickle, which can run code",
    "model.PT": "a pickle",
    "model.weights.h5": "HDF5",
    "model.keras": "Keras",
    "flax_model.msgpack": "msgpack",
    "decoder.onnx": "ONNX",
    "model.tflite": "LiteRT",
    "model.safetensors": "is one file of a checkpoint; give its folder",
    "model.tar.gz": "unpack it",
    "notes.txt": "is not a directory",
}


def error_of(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    error = str(caught.value)
    assert error.isprintable()
    assert str(path) in error
    assert len(error) < 600 + len(str(path))
    return error


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_that_is_no_checkpoint_is_named(tmp_path: Path, kind: str) -> None:
    files, wanted = FOLDERS[kind]
    folder = tmp_path / "x"
    folder.mkdir()
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    error = error_of(folder)
    for text in wanted:
        assert text in error


@pytest.mark.parametrize("name", FILES)
def test_a_file_in_the_place_of_a_folder_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    assert FILES[name] in error_of(tmp_path / name)
    assert "is not a directory" in error_of(tmp_path / "absent" / name)


def test_a_bundle_is_no_checkpoint_and_a_checkpoint_no_bundle(
    shapes_bundle: Path, shapes_checkpoint: Path
) -> None:
    assert "is a bundle, which was exported already" in error_of(shapes_bundle)
    with pytest.raises(BundleError, match="so it is a checkpoint; make a bundle with"):
        Bundle.open(shapes_checkpoint)
    with pytest.raises(CheckpointError, match="is a bundle"):
        verify(shapes_bundle, shapes_bundle)


def test_a_checkpoint_with_files_of_other_programs_is_opened(
    shapes_checkpoint: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(shapes_checkpoint, tmp_path / "x")
    for name in ("a.gguf", "tf_model.h5", "flax_model.msgpack", "training_args.bin", "model.onnx"):
        (folder / name).touch()
    assert open_checkpoint(folder).directory == folder
