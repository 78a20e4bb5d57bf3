"""What is missing for CUDA is said before ONNX Runtime fails of it."""

from __future__ import annotations

import ctypes
import dataclasses
from pathlib import Path

import onnxruntime as ort
import pytest

from paligemma_edge.runtime.device.cuda.check import (
    Gpu,
    check_gpu,
    load_libraries,
    package_advice,
)
from paligemma_edge.runtime.errors import DeviceError
from tests.helpers.cuda_stand_ins import CODE, CUDA_13, EVERY, make_package

CARD = Gpu("NVIDIA L4", (8, 9), 24 << 30, 20 << 30, (13, 0))


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(ort, "__file__", str(tmp_path / "onnxruntime/__init__.py"))
    monkeypatch.setattr(ort, "__version__", "1.31.1")
    return tmp_path / "onnxruntime"


def _libraries(
    monkeypatch: pytest.MonkeyPatch, *there: str, broken: str | None = None
) -> list[str]:
    """Let only these be found, and note which are looked for."""
    asked: list[str] = []

    def load(name: str) -> None:
        asked.append(name)
        if name == broken:
            raise OSError("/opt/x.so: file too short")
        if name not in there:
            raise OSError(f"{name}: cannot open shared object file: No such file or directory")

    monkeypatch.setattr(ctypes, "CDLL", load)
    return asked


def test_libraries_that_are_all_there_are_loaded_quietly(
    package: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = _libraries(monkeypatch, *CUDA_13, "libcudnn.so.9")

    def preload() -> None:
        print("Failed to load libcufft.so.12")
        asked.append("pip's")

    monkeypatch.setattr(ort, "preload_dlls", preload)
    make_package(package)
    load_libraries()
    assert asked.pop(0) == "pip's"  # they come before the system's
    assert asked == ["libcublasLt.so.13", "libcublas.so.13", "libcudart.so.13", "libcudnn.so.9"]
    assert capfd.readouterr() == ("", "")


def test_each_library_that_is_missing_is_named(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_package(package)
    _libraries(monkeypatch, "libcublasLt.so.13", "libcudart.so.13")
    with pytest.raises(DeviceError) as caught:
        load_libraries()
    assert str(caught.value) == (
        "ONNX Runtime 1.31.1 needs libraries of CUDA 13 that are not here: libcublas.so.13, "
        "libcudnn.so.9; run: pip install 'paligemma-edge[cuda]', or put their folder on "
        "LD_LIBRARY_PATH"
    )


def test_a_library_that_does_not_load_is_named_with_the_reason(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_package(package)
    _libraries(monkeypatch, *CUDA_13, broken="libcudnn.so.9")
    with pytest.raises(DeviceError, match=r"not here: libcudnn\.so\.9 \(/opt/x\.so: file too sh"):
        load_libraries()


def test_a_build_for_another_cuda_is_not_sent_to_pip(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_package(package, ["libcudart.so.12", "libcudnn.so.9"])
    asked = _libraries(monkeypatch)
    with pytest.raises(DeviceError, match=r"CUDA 12 .*; install CUDA 12 and cuDNN 9, or put"):
        load_libraries()
    assert asked == ["libcudart.so.12", "libcudnn.so.9"]


def test_a_gpu_that_is_served_passes(package: Path) -> None:
    make_package(package)
    check_gpu(CARD)
    check_gpu(dataclasses.replace(CARD, driver=(14, 2)))


def test_an_old_driver_is_refused(package: Path) -> None:
    make_package(package)
    with pytest.raises(DeviceError) as caught:
        check_gpu(dataclasses.replace(CARD, driver=(12, 8)))
    assert str(caught.value) == (
        "the driver of NVIDIA L4 serves CUDA up to 12.8, ONNX Runtime 1.31.1 needs CUDA 13; "
        "install NVIDIA's driver R580 or newer"
    )


def test_a_driver_for_a_cuda_to_come_has_no_number(package: Path) -> None:
    make_package(package, ["libcudart.so.15"])
    with pytest.raises(DeviceError, match="needs CUDA 15; install a newer NVIDIA driver"):
        check_gpu(CARD)


def test_a_gpu_that_there_is_no_code_for_is_refused(package: Path) -> None:
    make_package(package, code=[EVERY, [(CODE, 90)]])
    with pytest.raises(DeviceError) as caught:
        check_gpu(dataclasses.replace(CARD, name="Orin", capability=(11, 0)))
    assert str(caught.value) == (
        "Orin has compute capability 11.0, and ONNX Runtime 1.31.1 has code for 7.5, 8.0, 9.0, "
        "12.0 alone; use another GPU, or build ONNX Runtime with CMAKE_CUDA_ARCHITECTURES=110"
    )


def test_nothing_is_refused_where_there_is_nothing_to_read(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = _libraries(monkeypatch)
    load_libraries()
    check_gpu(dataclasses.replace(CARD, capability=(1, 0), driver=(1, 0)))
    assert asked == []


@pytest.mark.parametrize("both", [False, True])
def test_two_packages_of_onnxruntime_are_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, both: bool
) -> None:
    for name in ("onnxruntime", "onnxruntime_gpu") if both else ("onnxruntime",):
        (tmp_path / f"{name}-1.31.1.dist-info").mkdir()
        (tmp_path / f"{name}-1.31.1.dist-info/METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.31.1\n"
        )
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    told = package_advice()
    assert ("both installed" in told) is both
    assert "run: pip uninstall onnxruntime onnxruntime-gpu && pip install 'paligemma-edge" in told
