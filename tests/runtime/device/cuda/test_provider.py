"""What a CUDA library asks of a machine is read from the library itself."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paligemma_edge.runtime.device.cuda.provider import Provider, read_provider
from tests.helpers.cuda_stand_ins import CODE, CUDA_13, PTX, make_package

LIBRARY = "capi/libonnxruntime_providers_cuda.so"


def test_libraries_and_architectures_are_read(tmp_path: Path) -> None:
    needed = (*CUDA_13, "libnvrtc.so.13")
    package = make_package(
        tmp_path, needed, code=[[(CODE, 75), (CODE, 120)], [(PTX, 90), (CODE, 75)]]
    )
    assert read_provider(package) == Provider(
        libraries=tuple(name for name in needed if name != "libc.so.6"),
        machine_code=frozenset({(7, 5), (12, 0)}),
        ptx=frozenset({(9, 0)}),
    )


@pytest.mark.parametrize(
    ("name", "major"),
    [("libcudart.so.13", 13), ("libcudart.so.12.1", 12), ("libcudart.so", None), ("libc.so", None)],
)
def test_its_cuda_is_that_of_the_runtime_that_it_needs(
    tmp_path: Path, name: str, major: int | None
) -> None:
    provider = read_provider(make_package(tmp_path, [name]))
    assert provider is not None
    assert provider.cuda == major


@pytest.mark.parametrize(
    ("capability", "served"),
    [
        ((7, 0), False),  # older than all
        ((7, 5), True),
        ((8, 0), False),  # older than its kind's
        ((8, 6), True),
        ((8, 9), True),  # runs the code of 8.6
        ((9, 0), False),
        ((10, 0), True),  # by the PTX of 10.0
        ((12, 1), True),
    ],
)
def test_what_a_gpu_can_run(capability: tuple[int, int], served: bool) -> None:
    provider = Provider((), frozenset({(7, 5), (8, 6)}), frozenset({(10, 0)}))
    assert provider.serves(capability) is served


def test_a_library_that_tells_of_no_code_refuses_no_gpu(tmp_path: Path) -> None:
    provider = read_provider(make_package(tmp_path, code=[]))
    assert provider is not None
    assert provider.serves((1, 0))


def over(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    """Write over what is there, and move nothing."""
    return lambda data: data.replace(old, new + old[len(new) :], 1)


FAT = struct.pack("<IHHQ", 0xBA55ED50, 1, 16, 3 * 88)
ENTRY = struct.pack("<HHIQ", CODE, 0x101, 64, 24)
FIRST_NAME = struct.pack("<qQ", 1, 1)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"MZ" + data[2:],  # a library of Windows
        lambda data: data[:4] + b"\x01" + data[5:],  # of 32 bits
        lambda data: data[:40] + b"\xff" * 8 + data[48:],  # its sections lie nowhere
        lambda data: data[:62] + b"\x05\x00" + data[64:],  # their names are not among them
        over(b".dynamic", b".dynamix"),
        over(FIRST_NAME, struct.pack("<qQ", 1, 1 << 40)),  # a name behind the file's end
        over(FAT, FAT[:4] + bytes(12)),  # a header, and an entry's, that never end
        over(ENTRY, ENTRY[:4] + bytes(12)),
    ],
)
def test_what_is_damaged_or_not_known_is_none(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    assert read_provider(tmp_path) is None
    path = make_package(tmp_path / "other") / LIBRARY
    path.write_bytes(damage(path.read_bytes()))
    assert read_provider(tmp_path / "other") is None


@given(st.data())
def test_a_damaged_library_ends_in_an_answer(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        package = make_package(Path(folder) / "package")
        damaged = bytearray((package / LIBRARY).read_bytes())
        for _ in range(data.draw(st.integers(1, 6))):
            place = data.draw(st.integers(0, len(damaged) - 8))
            number = data.draw(st.one_of(st.integers(0, 300), st.integers(0, (1 << 64) - 1)))
            damaged[place : place + 8] = number.to_bytes(8, "little")
        (package / LIBRARY).write_bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
        assert isinstance(read_provider(package), Provider | None)
