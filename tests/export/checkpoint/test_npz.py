"""npz archives: read by range, in parts, compressed or not; and every way in which one is bad."""

from __future__ import annotations

import io
import itertools
import pickle
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from paligemma_edge.export.checkpoint.joined_file import JoinedFile
from paligemma_edge.export.checkpoint.npz import read_npz
from paligemma_edge.export.checkpoint.npz_paths import is_npz_name, npz_files
from paligemma_edge.export.checkpoint.tensors import FileTensor
from paligemma_edge.runtime.errors import CheckpointError

Arrays = dict[str, NDArray[Any]]


def some_arrays() -> Arrays:
    numbers = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(np.float32)
    return {
        "a/float": numbers,
        "a/half": numbers[0].astype(np.float16),
        "b/brain": numbers.astype(ml_dtypes.bfloat16),
        "b/turned": numbers[1].T,
        "row": numbers[0, 0],
        "none": numbers[:0],
    }


def write(path: Path, arrays: Arrays, save: Callable[..., None] = np.savez) -> Path:
    save(path, **arrays)
    return path


def write_member(path: Path, header: dict[str, Any], data: bytes, name: str = "x.npy") -> Path:
    """An archive of one array, with any header."""
    start = io.BytesIO()
    np.lib.format.write_array_header_1_0(start, header)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, start.getvalue() + data)
    return path


def read_error(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        for tensor in read_npz([path]).values():
            tensor.numpy()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_read_in_every_way(tmp_path: Path, save: Callable[..., None]) -> None:
    arrays = some_arrays()
    tensors = read_npz([write(tmp_path / "x.npz", arrays, save)])
    assert tensors.keys() == arrays.keys()
    for name, array in arrays.items():
        tensor = tensors[name]
        assert tensor.numpy().dtype == array.dtype
        assert tuple(tensor.shape.numpy()) == array.shape
        np.testing.assert_array_equal(tensor.numpy(), array)
        assert tensor.tobytes() == array.tobytes()
        flat = array.reshape(-1)
        for stop in (min(11, array.size), array.size // 2, array.size):  # forwards, then back
            start = stop // 3
            np.testing.assert_array_equal(tensor.read(start, stop), flat[start:stop])


def test_only_arrays_of_the_folder_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "x.npz", {**some_arrays(), "opt/step": np.zeros(1, np.int32)})
    assert set(read_npz([path], "a/")) == {"float", "half"}
    with pytest.raises(CheckpointError, match="opt/step as int32, wanted float32"):
        read_npz([path], "params/")


def test_a_stored_array_is_read_by_range(tmp_path: Path) -> None:
    """Reading one layer of a stacked array takes the memory of that layer only."""
    path = write(tmp_path / "x.npz", {"stack": np.ones((64, 256, 1024), np.float32)})
    tensor = read_npz([path])["stack"]
    assert isinstance(tensor, FileTensor)
    tracemalloc.start()
    try:
        layer = tensor.read(9 << 18, 10 << 18)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert layer.nbytes == 1 << 20
    assert peak < 1.2 * layer.nbytes


@given(
    cuts=st.lists(st.integers(0, 60), max_size=6), start=st.integers(0, 70), size=st.integers(0, 70)
)
def test_parts_are_one_file(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], start: int, size: int
) -> None:
    data, folder = bytes(range(60)), tmp_path_factory.mktemp("parts")
    edges = [0, *sorted(cuts), 60]
    paths = []
    for number, (first, last) in enumerate(itertools.pairwise(edges)):
        paths.append(folder / f"x.npz.part{number}")
        paths[-1].write_bytes(data[first:last])
    joined = JoinedFile.open(paths)
    array = bytearray(size)
    done = joined.read_into(start, memoryview(array))
    assert bytes(array[:done]) == data[start : start + size]
    reader = joined.reader()
    assert (reader.read(7), reader.seek(-5, io.SEEK_END), reader.read()) == (
        data[:7],
        55,
        data[55:],
    )
    assert npz_files(folder / "x.npz") == tuple(paths)


def test_a_part_that_is_cut_ends_the_file(tmp_path: Path) -> None:
    """What follows it would be at the wrong offset."""
    paths = [tmp_path / name for name in "abc"]
    for path in paths:
        path.write_bytes(path.name.encode() * 10)
    joined = JoinedFile.open(paths)
    paths[1].write_bytes(b"bbb")
    array = bytearray(30)
    assert joined.read_into(0, memoryview(array)) == 13
    assert joined.read_into(20, memoryview(array)) == 10


def test_names_of_archives() -> None:
    for name in ("x.npz", "X.NPZ", "x.b16.npz.part0", "x.npz.part-12"):
        assert is_npz_name(Path(name)), name
    for name in ("npz", "x.npz.partial", "x.npy", "x.part0", "x.npz.part1x"):
        assert not is_npz_name(Path(name)), name


def test_parts_go_by_number(tmp_path: Path) -> None:
    for number in range(11):
        (tmp_path / f"x.npz.part{number}").touch()
    (tmp_path / "y.npz.part0").touch()
    assert [path.name for path in npz_files(tmp_path / "x.npz.part3")][::5] == [
        "x.npz.part0",
        "x.npz.part5",
        "x.npz.part10",
    ]


FLOATS = {"descr": "<f4", "fortran_order": False, "shape": (3,)}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"shape": (10**13,)}, "x in 140 bytes, its shape [10000000000000] needs 40000000000128"),
        ({"shape": (2**62, 2**62, 2**62)}, "needs"),
        ({"shape": (4,)}, "its shape [4] needs 144"),
        ({"shape": (-1, -3)}, "negative size"),
        ({"descr": ">f4"}, "x as >f4, wanted float32, float16, bfloat16 or float64"),
        ({"descr": "<i4"}, "x as int32, wanted float32"),
        ({"descr": "|O"}, "x as Python objects, a pickle"),
        ({"descr": [("a", "<u2"), ("b", "<u2")]}, "wanted float32"),
    ],
)
def test_wrong_headers(header: dict[str, Any], message: str, tmp_path: Path) -> None:
    assert message in read_error(write_member(tmp_path / "x.npz", {**FLOATS, **header}, b"\0" * 12))


def test_a_pickle_is_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path(tmp_path / "sprung").touch, ())

    path = write(tmp_path / "x.npz", {"x": np.array([Trap()], object)})
    assert "x as Python objects, a pickle, which can run code and is not read" in read_error(path)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_with_the_name_of_an_npz(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(pickle.dumps({"x": np.zeros(3)}, protocol))
    assert "x.npz is a pickle, which can run code and is not read" in read_error(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"x")
    assert "it holds a pickle, as torch.save writes it" in read_error(path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
def test_float64_is_rounded_as_by_torch(
    tmp_path: Path, save: Callable[..., None], order: Literal["C", "F"]
) -> None:
    values = np.asarray(np.random.default_rng(0).normal(0, 1, (40, 30)), order=order)
    values[0, :4] = [1 + 2**-24, 1 + 3 * 2**-24, 1e-42, -0.0]  # ties, a subnormal number, a sign
    save(tmp_path / "x.npz", x=values)
    (tensor,) = read_npz([tmp_path / "x.npz"]).values()
    assert tensor.dtype == ir.DataType.FLOAT
    assert tensor.tobytes() == torch.from_numpy(values.copy()).float().numpy().tobytes()
    save(tmp_path / "x.npz", x=np.array([0.0, 1e39]))
    (tensor,) = read_npz([tmp_path / "x.npz"]).values()
    with pytest.raises(CheckpointError, match=r"holds 1e\+39 in float64, which float32 cannot"):
        tensor.numpy()


def test_members_of_other_kinds(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    data = io.BytesIO()
    np.save(data, np.zeros(3, np.float32))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("x.npy", data.getvalue())
    assert "compressed by method 12, wanted stored or deflated" in read_error(path)
    with zipfile.ZipFile(path, "w") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("x.npy", data.getvalue())
        archive.writestr("x.npy", data.getvalue())
    assert "two arrays of one name" in read_error(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "is not a sound npz archive" in read_error(path)
    write(path, {"x": np.zeros(3, np.float32)})
    locked = bytearray(path.read_bytes())
    locked[locked.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(locked)
    assert "is encrypted" in read_error(path)


def test_files_that_are_not_archives(tmp_path: Path) -> None:
    for number, data in enumerate((b"", b"PK", b"no archive" * 100, bytes(1 << 16))):
        path = tmp_path / f"{number}.npz"
        path.write_bytes(data)
        assert "is not a sound npz archive" in read_error(path)
    np.save(tmp_path / "x.npy", np.zeros(3, np.float32))
    assert "is a single array (npy)" in read_error(tmp_path / "x.npy")
    assert "No such file" in read_error(tmp_path / "absent.npz")


def test_a_cut_archive(tmp_path: Path) -> None:
    path = write(tmp_path / "x.npz", some_arrays())
    data = path.read_bytes()
    for keep in (10, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:keep])
        assert "is not a sound npz archive" in read_error(path)
    path.write_bytes(data[100:])
    assert "is not a sound npz archive" in read_error(path)


def test_a_file_that_changes_while_it_is_used(tmp_path: Path) -> None:
    path = write(tmp_path / "x.npz", {"x": np.ones(1000, np.float32)})
    tensor = read_npz([path])["x"]
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="bytes early"):
        tensor.numpy()
    path.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        tensor.numpy()


def test_a_damaged_stream(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).standard_normal(100_000).astype(np.float32)
    path = write(tmp_path / "x.npz", {"x": noise}, np.savez_compressed)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    assert "x cannot be decompressed" in read_error(path)


def test_a_stream_shorter_than_its_header(tmp_path: Path) -> None:
    start = io.BytesIO()
    np.lib.format.write_array_header_1_0(start, {**FLOATS, "shape": (65,)})
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", start.getvalue() + bytes(64 * 4))
    data = bytearray((tmp_path / "x.npz").read_bytes())
    struct.pack_into("<I", data, data.index(b"PK\x01\x02") + 24, len(start.getvalue()) + 65 * 4)
    (tmp_path / "x.npz").write_bytes(data)
    assert "x ends early in its npz archive" in read_error(tmp_path / "x.npz")


@given(
    st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), max_size=4), st.integers(-40, 20)
)
def test_any_damage_gives_arrays_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, edits: list[tuple[int, int]], length: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.npz"
    arrays: Arrays = {"a": np.ones((2, 3), np.float32), "b": np.zeros(5, np.float16)}
    for save in (np.savez, np.savez_compressed):
        data = bytearray(write(path, arrays, save).read_bytes())
        for place, value in edits:
            data[place % len(data)] = value
        path.write_bytes(bytes(data[:length]) if length < 0 else bytes(data) + b"x" * length)
        try:
            for tensor in read_npz([path]).values():
                assert tensor.numpy().nbytes == tensor.nbytes
                assert tensor.dtype in (
                    ir.DataType.FLOAT,
                    ir.DataType.FLOAT16,
                    ir.DataType.BFLOAT16,
                )
        except CheckpointError as error:
            assert "\n" not in str(error)
