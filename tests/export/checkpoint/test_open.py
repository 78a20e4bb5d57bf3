"""Checkpoints in every layout, and every error of a wrong one."""

from __future__ import annotations

import gc
import io
import json
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from paligemma_edge.export.checkpoint import tensors as tensors_module
from paligemma_edge.export.checkpoint.open import open_checkpoint
from paligemma_edge.export.checkpoint.safetensors_file import read_safetensors
from paligemma_edge.export.checkpoint.tensor_names import EMBEDDING, source_key
from paligemma_edge.runtime.errors import CheckpointError

Arrays = dict[str, np.ndarray[Any, Any]]
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TABLE = source_key(EMBEDDING, "A")
HEAD = source_key("lm_head.weight", "A")
NORM = source_key("decoder.norm.weight", "A")


@pytest.fixture(scope="module")
def original(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint(dtype="bfloat16")


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "copy"))


def rewrite(folder: Path, change: Callable[[Arrays], object]) -> None:
    arrays = load_file(folder / WEIGHTS)
    change(arrays)
    save_file(arrays, folder / WEIGHTS)


def shard(folder: Path, parts: int = 3) -> list[str]:
    """Split the weights as transformers does; returns the names of the shards."""
    arrays = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = [f"model-{i + 1:05d}-of-{parts:05d}.safetensors" for i in range(parts)]
    weight_map = {key: names[i % parts] for i, key in enumerate(arrays)}
    for name in names:
        save_file({k: v for k, v in arrays.items() if weight_map[k] == name}, folder / name)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return names


def open_error(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("layout", ["B", "C"])
def test_layouts_give_the_same_tensors(
    original: Path, layout: str, make_checkpoint: Callable[..., Path]
) -> None:
    first = open_checkpoint(original)
    other = open_checkpoint(make_checkpoint(dtype="bfloat16", layout=layout))
    assert first.config.text == other.config.text
    assert first.tensors.keys() == other.tensors.keys()
    for name, tensor in first.tensors.items():
        assert tensor.tobytes() == other.tensors[name].tobytes(), name


@pytest.mark.parametrize(
    ("dtype", "kind", "scalar"),
    [
        ("float32", ir.DataType.FLOAT, np.float32),
        ("bfloat16", ir.DataType.BFLOAT16, ml_dtypes.bfloat16),
        ("float16", ir.DataType.FLOAT16, np.float16),
    ],
)
def test_a_tensor_is_read_in_every_way(
    dtype: str, kind: ir.DataType, scalar: type, make_checkpoint: Callable[..., Path]
) -> None:
    folder = make_checkpoint(dtype=dtype)
    checkpoint = open_checkpoint(folder)
    assert checkpoint.dtype == kind
    tensor = checkpoint.tensors[EMBEDDING]
    wanted = load_file(folder / WEIGHTS)[TABLE]
    assert wanted.dtype == scalar == tensor.numpy().dtype
    assert tuple(tensor.shape) == wanted.shape
    np.testing.assert_array_equal(tensor.numpy(), wanted)
    np.testing.assert_array_equal(np.array(tensor), wanted)
    np.testing.assert_array_equal(np.asarray(tensor, np.float32), wanted.astype(np.float32))
    assert tensor.tobytes() == wanted.tobytes()
    assert "FLOAT" in repr(tensor)


def test_a_tensor_is_copied_in_chunks(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors_module, "CHUNK_BYTES", 1000)
    tensor = open_checkpoint(original).tensors[EMBEDDING]
    writes: list[int] = []

    class File(io.BytesIO):
        def write(self, data: Any) -> int:  # noqa: ANN401
            writes.append(len(data))
            return super().write(data)

    file = File()
    tensor.tofile(file)
    assert file.getvalue() == tensor.tobytes()
    assert max(writes) == 1000


def test_a_large_tensor_is_copied_in_little_memory(tmp_path: Path) -> None:
    path = tmp_path / WEIGHTS
    save_file({"a": np.ones((4, 4 << 20), np.float32)}, path)
    tensor = read_safetensors(path)["a"]
    gc.collect()
    with (tmp_path / "copy").open("wb") as file:
        tracemalloc.start()
        try:
            tensor.tofile(file)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert tensor.nbytes == (tmp_path / "copy").stat().st_size == 64 << 20
    assert tensors_module.CHUNK_BYTES <= peak <= 2.1 * tensors_module.CHUNK_BYTES


def test_shards_and_links(folder: Path, tmp_path: Path) -> None:
    whole = {name: t.tobytes() for name, t in open_checkpoint(folder).tensors.items()}
    names = shard(folder)
    snapshot = tmp_path / "snapshots"
    snapshot.mkdir()
    for path in folder.iterdir():  # as in the Hub's cache
        blob = path.rename(tmp_path / f"blob-{path.name}")
        (snapshot / path.name).symlink_to(blob)
    checkpoint = open_checkpoint(snapshot)
    assert [path.name for path in checkpoint.files] == names
    assert {name: t.tobytes() for name, t in checkpoint.tensors.items()} == whole


def test_tensors_may_have_their_own_dtypes(folder: Path) -> None:
    rewrite(folder, lambda a: a.update({NORM: a[NORM].astype(np.float32)}))
    checkpoint = open_checkpoint(folder)
    assert checkpoint.dtype == ir.DataType.BFLOAT16
    assert checkpoint.tensors["decoder.norm.weight"].dtype == ir.DataType.FLOAT


def test_a_stored_head_is_the_table(folder: Path) -> None:
    wanted = open_checkpoint(folder).tensors[EMBEDDING].tobytes()
    rewrite(folder, lambda a: a.update({HEAD: a[TABLE].copy()}))
    assert open_checkpoint(folder).tensors[EMBEDDING].name == TABLE
    rewrite(folder, lambda a: a.pop(TABLE))
    tensor = open_checkpoint(folder).tensors[EMBEDDING]
    assert (tensor.name, tensor.tobytes()) == (HEAD, wanted)


@pytest.mark.parametrize(
    "change", [lambda t: t[:-1].copy(), lambda t: t.astype(np.float32), lambda t: -t]
)
def test_two_different_tables(folder: Path, change: Callable[[Any], Any]) -> None:
    rewrite(folder, lambda a: a.update({HEAD: change(a[TABLE])}))
    assert "differs from" in open_error(folder)


def test_buffers_are_skipped(folder: Path) -> None:
    extra = {
        "vision_tower.vision_model.embeddings.position_ids": np.arange(16),
        "language_model.model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float64),
    }
    rewrite(folder, lambda a: a.update(extra))
    checkpoint = open_checkpoint(folder)
    wanted = load_file(folder / WEIGHTS)
    for tensor in checkpoint.tensors.values():
        np.testing.assert_array_equal(tensor.numpy(), wanted[str(tensor.name)])


def test_one_error_lists_every_wrong_tensor(folder: Path) -> None:
    bias = source_key("vision.layers.1.fc1.bias", "A")

    def change(arrays: Arrays) -> None:
        del arrays[NORM]
        arrays["value_head.weight"] = np.ones(3, np.float32)
        arrays[bias] = np.ones(5, np.float32)

    rewrite(folder, change)
    message = open_error(folder)
    assert "1 missing: decoder.norm.weight" in message
    assert "1 unexpected: value_head.weight" in message
    assert "1 misshapen: vision.layers.1.fc1.bias is [5] and not [48]" in message


def test_a_config_of_another_size(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["image_size"] = 224
    (folder / "config.json").write_text(json.dumps(config))
    assert "vision image tokens is 256, the tensors have 16" in open_error(folder)


def test_layouts_do_not_mix(folder: Path) -> None:
    twin = source_key("decoder.norm.weight", "B")
    rewrite(folder, lambda a: a.update({twin: a[NORM].copy()}))
    assert "two keys for one tensor" in open_error(folder)


def test_integer_tensors(folder: Path) -> None:
    rewrite(folder, lambda a: a.update({NORM: a[NORM].astype(np.int8)}))
    assert "as I8, wanted F32, BF16, F16 or F64; it is quantized already" in open_error(folder)


def test_float64_is_rounded_as_by_torch(folder: Path) -> None:
    rng = np.random.default_rng(0)
    exact: dict[str, Any] = {}

    def widen(arrays: Arrays) -> None:
        for name in (NORM, TABLE):
            exact[name] = rng.normal(0, 1, arrays[name].shape)
            arrays[name] = exact[name]

    rewrite(folder, widen)
    checkpoint = open_checkpoint(folder)
    assert checkpoint.dtype == ir.DataType.FLOAT
    for name, key in ((EMBEDDING, TABLE), ("decoder.norm.weight", NORM)):
        wanted = torch.from_numpy(exact[key]).float().numpy()
        assert checkpoint.tensors[name].tobytes() == wanted.tobytes()
    others = load_file(folder / WEIGHTS)
    for tensor in checkpoint.tensors.values():
        if tensor.name not in exact:
            np.testing.assert_array_equal(tensor.numpy(), others[str(tensor.name)])


def test_directories_without_weights(folder: Path) -> None:
    assert "is not a directory" in open_error(folder / "absent")
    assert "is one file of a checkpoint; give its folder" in open_error(folder / "config.json")
    assert "is not a directory" in open_error(folder / ("x" * 300))
    (folder / WEIGHTS).unlink()
    (folder / "adapter_model.safetensors").touch()
    assert "is an adapter" in open_error(folder)
    (folder / "adapter_model.safetensors").unlink()
    assert "has neither model.safetensors nor" in open_error(folder)
    (folder / "pytorch_model.bin").touch()
    message = open_error(folder)
    assert "pytorch_model.bin" in message
    assert "save_pretrained" in message
    (folder / "pytorch_model.bin").unlink()
    (folder / "config.json").unlink()
    assert "has no config.json" in open_error(folder)


def test_a_bad_index(folder: Path) -> None:
    names = shard(folder)
    index = json.loads((folder / INDEX).read_text())
    (folder / names[1]).rename(folder / "away")
    assert f"lacks {names[1]}" in open_error(folder)
    for weight_map, message in [
        ({"a": "../x.safetensors"}, "plain file names"),
        ({"a": "/etc/passwd"}, "plain file names"),
        ({"a": ".."}, "plain file names"),
        ({"a": ""}, "plain file names"),
        ({"a": "x/y.safetensors"}, "plain file names"),
        ({"a": "x\\y.safetensors"}, "plain file names"),
        ({"a": "C:x\\y.safetensors"}, "plain file names"),
        ({"a": "x\0.safetensors"}, r"names x\x00.safetensors, wanted plain file names"),
        ({"a": "x" * 256}, "plain file names"),
        ({"a": "é" * 128}, "plain file names"),
        ({"a": "x" * 100_000}, "plain file names"),
        ({"a": "\ud800.safetensors"}, "plain file names"),
        ({"a": "x" * 255}, "finish the download"),
        ({"a": "\x1b[2J\n.safetensors"}, r"lacks \x1b[2J\n.safetensors, which"),
        ({"a": "\u202egpj.safetensors"}, r"lacks \u202egpj.safetensors, which"),
        ({f"{n}": f"{n}.safetensors" for n in range(9999)}, "and 9989 more, which"),
        ({"a": ["x"]}, "finish the download"),
        ({"a": None}, "finish the download"),
        ([], "no weight_map"),
        (None, "no weight_map"),
    ]:
        (folder / INDEX).write_text(json.dumps({**index, "weight_map": weight_map}))
        error = open_error(folder)
        assert message in error
        assert error.isprintable()
        assert len(error) < 1000


def test_a_tensor_in_two_shards(folder: Path) -> None:
    first, second, _ = shard(folder)
    shutil.copy(folder / first, folder / second)
    assert "repeats tensors of another shard" in open_error(folder)


@pytest.mark.parametrize("keep", [0, 4, 8, 100, -1])
def test_a_cut_file(folder: Path, keep: int) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:keep])
    assert "not a sound safetensors file" in open_error(folder)


def test_a_file_that_changes_while_it_is_used(folder: Path) -> None:
    tensor = open_checkpoint(folder).tensors[EMBEDDING]
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: data.index(tensor.tobytes()) + 10])
    with pytest.raises(CheckpointError, match="bytes early"):
        tensor.numpy()
    (folder / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        tensor.numpy()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4),
    st.integers(-20, 20),
)
def test_any_damage_to_a_file_gives_tensors_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, edits: list[tuple[int, int]], length: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    save_file({"a": np.ones((2, 3), np.float32), "b": np.zeros(5, np.float16)}, path)
    data = bytearray(path.read_bytes())
    for place, value in edits:
        data[place % len(data)] = value
    path.write_bytes(bytes(data[:length]) if length < 0 else bytes(data) + b"x" * length)
    try:
        for tensor in read_safetensors(path).values():
            assert tensor.numpy().nbytes == tensor.nbytes
    except CheckpointError as error:
        assert "\n" not in str(error)
