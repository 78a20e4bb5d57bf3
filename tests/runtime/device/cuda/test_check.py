"""Errors say what CUDA lacks, and what to do."""

from __future__ import annotations

import ctypes
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from paligemma_edge.runtime.device.cuda import check
from paligemma_edge.runtime.device.cuda.check import load_libraries, package_advice
from paligemma_edge.runtime.device.cuda.driver import Gpu
from paligemma_edge.runtime.device.device import Device, open_device
from paligemma_edge.runtime.device.ort import ort
from paligemma_edge.runtime.errors import DeviceError

# As ONNX Runtime prints it: a package of pip's that does not load, then libraries of the system.
PRINTED = (
    "Failed to load /x/nvidia/cu13/lib/libcublas.so.13: file too short\n"
    "Failed to load libcublas.so.13: libcublas.so.13: cannot open shared object file\n"
    "Failed to load libcudart.so.13: libcudart.so.13: cannot open shared object file\n"
    "Please follow https://onnxruntime.ai/docs/install/#cuda-and-cudnn to install CUDA.\n"
)


def _preload(monkeypatch: pytest.MonkeyPatch, printed: str) -> None:
    monkeypatch.setattr(ort, "preload_dlls", lambda: print(printed, end=""))


def _session_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: Any = SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(ort, "InferenceSession", lambda *_, **__: opened)
    monkeypatch.setattr(ort, "__version__", "1.31.1")


def test_libraries_that_are_all_there_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    _preload(monkeypatch, "")
    assert load_libraries() == ()


def test_libraries_that_do_not_load_are_returned_and_not_printed(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    _preload(monkeypatch, PRINTED)
    assert load_libraries() == ("libcublas.so.13", "libcudart.so.13")
    assert capfd.readouterr() == ("", "")


def test_the_preloading_of_this_onnxruntime_is_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    load_libraries()
    assert capfd.readouterr() == ("", "")


def _open_cuda(monkeypatch: pytest.MonkeyPatch, printed: str, cudnn: OSError | None) -> Device:
    """Open a device whose driver and GPU are here."""

    def load(name: str) -> None:
        assert name == "libcudnn.so.9"
        if cudnn is not None:
            raise cudnn

    _preload(monkeypatch, printed)
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(check, "find_gpu", lambda _: Gpu("a GPU", (9, 0), 1, 1, (13, 0)))
    monkeypatch.setattr(ctypes, "CDLL", load)
    return open_device("cuda")


def test_a_device_keeps_what_was_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    device = _open_cuda(monkeypatch, PRINTED, None)
    assert device.missing_libraries == ("libcublas.so.13", "libcudart.so.13")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            "libcudnn.so.9: cannot open shared object file: No such file or directory",
            "is not here; run: pip install",
        ),
        ("/x/libcudnn.so.9: file too short", r"does not load \(/x/libcudnn.so.9: file too short\)"),
    ],
)
def test_cudnn_is_missed_before_a_graph_is_opened(
    monkeypatch: pytest.MonkeyPatch, error: str, reason: str
) -> None:
    with pytest.raises(DeviceError, match=f"libcudnn.so.9, .* vision encoder needs, {reason}"):
        _open_cuda(monkeypatch, "", OSError(error))


def test_a_session_without_cuda_names_the_libraries_that_are_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _session_without_cuda(monkeypatch)
    missing = ("libcublas.so.13", "libcudart.so.13")
    with pytest.raises(DeviceError) as caught:
        Device(name="cuda", threads=1, missing_libraries=missing).open_session(
            tmp_path / "decoder.onnx"
        )
    assert str(caught.value) == (
        f"{tmp_path / 'decoder.onnx'} was to run on cuda, but ONNX Runtime 1.31.1 fell back to "
        "CPUExecutionProvider; libraries of CUDA that it needs are not here: libcublas.so.13, "
        "libcudart.so.13; run: pip install 'paligemma-edge[cuda]', or put their folder on "
        "LD_LIBRARY_PATH"
    )


def test_a_session_without_cuda_for_another_reason_says_what_to_check(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _session_without_cuda(monkeypatch)
    with pytest.raises(DeviceError, match="fell back to CPUExecutionProvider; check the driver"):
        Device(name="cuda", threads=1).open_session(tmp_path / "decoder.onnx")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (
            "CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version ; GPU=0",
            "the NVIDIA driver is too old for this ONNX Runtime's CUDA; install a newer one",
        ),
        (
            "CUDA error cudaErrorNoKernelImageForDevice:no kernel image is available for execution "
            "on the device",
            "this ONNX Runtime has no code for this GPU; use another GPU, or an ONNX Runtime that "
            "was built for it",
        ),
    ],
)
def test_an_old_driver_and_a_gpu_without_code_are_clear_when_a_session_is_opened(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, wanted: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError(text)

    monkeypatch.setattr(ort, "InferenceSession", refuse)
    with pytest.raises(DeviceError) as caught:
        Device(name="cuda", threads=1).open_session(tmp_path / "decoder.onnx")
    assert str(caught.value).endswith(wanted)


@pytest.mark.parametrize("both", [False, True])
def test_two_packages_of_onnxruntime_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, both: bool
) -> None:
    for name in ("onnxruntime", "onnxruntime_gpu") if both else ("onnxruntime",):
        (tmp_path / f"{name}-1.31.1.dist-info").mkdir()
        (tmp_path / f"{name}-1.31.1.dist-info/METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.31.1\n"
        )
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    advice = package_advice()
    assert ("both installed" in advice) is both
    assert "run: pip uninstall onnxruntime onnxruntime-gpu && pip install 'paligemma-edge" in advice
