"""Devices: a requested one is used, or it is an error."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from paligemma_edge.runtime.device.cuda import check as cuda
from paligemma_edge.runtime.device.cuda.check import Gpu
from paligemma_edge.runtime.device.device import Device, open_device, require_placed
from paligemma_edge.runtime.device.ort import ort
from paligemma_edge.runtime.errors import BundleError, DeviceError, OptionError
from paligemma_edge.runtime.loading.variants import choose_variant
from paligemma_edge.runtime.manifest import Manifest
from paligemma_edge.runtime.system.linux import usable_cores
from tests.helpers.small_bundle import manifest as small_manifest


@pytest.fixture
def manifest() -> Manifest:
    whole = small_manifest()
    variant = whole.variants["cpu-fp32"]
    variants = {
        "cpu-fp32": variant,
        "cpu-int8": variant,
        "cuda-fp16": dataclasses.replace(variant, device="cuda"),
    }
    return dataclasses.replace(whole, variants=variants)


def _providers(monkeypatch: pytest.MonkeyPatch, *names: str, gpu: bool = True) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: list(names))
    monkeypatch.setattr(cuda, "gpu_is_present", lambda: gpu)
    monkeypatch.setattr(cuda, "find_gpu", lambda index=0: GPU if gpu else _no_gpu())


def _no_gpu() -> Gpu:
    raise DeviceError("there is no GPU")


GPU = Gpu("a GPU", (9, 0), 80 << 30, 79 << 30, (13, 0))


def test_auto_takes_cuda_where_it_is_present(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    _providers(monkeypatch, "CUDAExecutionProvider", "CPUExecutionProvider")
    assert choose_variant(manifest).name == "cuda-fp16"
    _providers(monkeypatch, "CPUExecutionProvider")
    assert choose_variant(manifest).name == "cpu-int8"


def test_auto_takes_the_cpu_without_a_gpu(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    _providers(monkeypatch, "CUDAExecutionProvider", "CPUExecutionProvider", gpu=False)
    assert choose_variant(manifest).name == "cpu-int8"
    with pytest.raises(DeviceError, match="there is no GPU"):
        open_device("cuda")


def test_auto_stays_on_the_cpu_without_a_cuda_variant(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    _providers(monkeypatch, "CUDAExecutionProvider", "CPUExecutionProvider")
    cpu_only = {k: v for k, v in manifest.variants.items() if v.device == "cpu"}
    assert choose_variant(dataclasses.replace(manifest, variants=cpu_only)).name == "cpu-int8"


def test_a_named_variant_is_taken(manifest: Manifest) -> None:
    assert choose_variant(manifest, variant="cpu-int8").name == "cpu-int8"


def test_an_unavailable_variant_or_device_is_an_error(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    _providers(monkeypatch, "CUDAExecutionProvider", "CPUExecutionProvider")
    unknown: Any = "tpu"
    with pytest.raises(OptionError, match="device is 'tpu', wanted one of auto, cpu, cuda"):
        choose_variant(manifest, unknown)
    with pytest.raises(OptionError, match="has cpu-fp32, cpu-int8, cuda-fp16"):
        choose_variant(manifest, variant="cpu-int3")
    with pytest.raises(OptionError, match="made for cpu, device cuda"):
        choose_variant(manifest, "cuda", "cpu-int8")
    cpu_only = {"cpu-fp32": manifest.variants["cpu-fp32"]}
    with pytest.raises(BundleError, match="no variant for cuda, only cpu-fp32 for cpu") as caught:
        choose_variant(dataclasses.replace(manifest, variants=cpu_only), "cuda")
    assert "quantize" not in str(caught.value)  # which is no command
    unhashable: Any = []
    with pytest.raises(OptionError, match="variant is "):
        choose_variant(manifest, variant=unhashable)


def test_cuda_without_cuda_is_an_error_and_not_a_run_on_the_cpu(
    manifest: Manifest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _providers(monkeypatch, "CPUExecutionProvider")
    with pytest.raises(DeviceError, match="device cuda was requested"):
        open_device("cuda")
    # The device is looked for before the bundle's variants are.
    with pytest.raises(DeviceError, match="device cuda was requested"):
        choose_variant(dataclasses.replace(manifest, variants={}), "cuda")


def test_an_old_onnxruntime_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "__version__", "1.29.2")
    with pytest.raises(DeviceError, match=r"1\.29\.2, wanted 1\.30 or newer"):
        open_device("cpu")


def test_a_file_that_is_no_graph_is_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.onnx").write_bytes(b"no graph")
    with pytest.raises(DeviceError, match="cannot open") as error:
        open_device("cpu").open_session(tmp_path / "x.onnx")
    assert "\n" not in str(error.value)
    assert not capfd.readouterr().err  # ONNX Runtime says nothing of its own


def test_threads_are_the_usable_cores(tmp_path: Path) -> None:
    assert open_device("cpu").threads == usable_cores() <= len(os.sched_getaffinity(0))
    assert open_device("cpu", 3).threads == 3
    wrong: list[Any] = [0, -1, "2", 1.5, True, 10**12]
    for threads in wrong:
        with pytest.raises(OptionError, match=r"threads is .*, wanted a whole number"):
            open_device("cpu", threads)


def test_nodes_that_would_run_elsewhere_are_named(shapes_bundle: Path) -> None:
    path = shapes_bundle / "cpu-fp32/projector.onnx"
    options = ort.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    require_placed(path, session, "CPUExecutionProvider")
    with pytest.raises(DeviceError, match=r"nodes that CUDAExecutionProvider cannot run, such as"):
        require_placed(path, session, "CUDAExecutionProvider")


def test_a_gpu_gets_the_options_that_keep_it_exact_and_small(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: dict[str, Any] = {}

    class Session:
        def __init__(self, path: str, options: ort.SessionOptions, **given: object) -> None:
            seen.update(given)
            key = "session.use_device_allocator_for_initializers"
            seen["initializers"] = options.get_session_config_entry(key)

        def get_providers(self) -> list[str]:
            return ["CUDAExecutionProvider", "CPUExecutionProvider"]

        def get_provider_graph_assignment_info(self) -> list[Any]:
            return []

    monkeypatch.setattr(ort, "InferenceSession", Session)
    device = Device(name="cuda", threads=1, index=2, memory_limit=123, cuda_graph=True)
    device.open_session(tmp_path / "decoder.onnx", cuda_graph=True)
    ((name, options),) = seen["providers"]
    assert name == "CUDAExecutionProvider"
    assert options["device_id"] == "2"
    assert options["gpu_mem_limit"] == "123"
    assert options["enable_cuda_graph"] == "1"
    assert options["arena_extend_strategy"] == "kSameAsRequested"
    assert options["use_tf32"] == "0"
    assert seen["initializers"] == "1"
    assert seen["enable_fallback"] == 0
    device.open_session(tmp_path / "vision_encoder.onnx")
    assert seen["providers"][0][1]["enable_cuda_graph"] == "0"


def test_memory_of_a_gpu_that_ran_out_is_one_clear_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(*_: object, **__: object) -> None:
        raise RuntimeError("Available memory of 12 is smaller than requested bytes of 4096")

    monkeypatch.setattr(ort, "InferenceSession", full)
    with pytest.raises(DeviceError, match="the GPU has not enough free memory"):
        Device(name="cuda", threads=1).open_session(tmp_path / "decoder.onnx")


def test_without_onnxruntime_the_error_says_how_to_get_it() -> None:
    program = (
        "import sys\n"
        "sys.modules['onnxruntime'] = None\n"
        "from paligemma_edge.runtime.errors import MissingExtraError\n"
        "try:\n"
        "    from paligemma_edge import PaliGemma\n"
        "except MissingExtraError as error:\n"
        "    print(error)\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "run: pip install 'paligemma-edge[cpu]'" in done.stdout, done.stderr
