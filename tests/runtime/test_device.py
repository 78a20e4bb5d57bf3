"""Devices: what was asked for is honoured or it is an error."""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime as ort
import pytest

from paligemma_edge.runtime import device as devices
from paligemma_edge.runtime.contract import Manifest, Variant
from paligemma_edge.runtime.device import choose, open_device, usable_cores
from paligemma_edge.runtime.errors import BundleError, DeviceError, OptionError


@pytest.fixture
def manifest() -> Manifest:
    variant = Variant(
        device="cpu",
        recipe="fp32",
        graphs={},
        weight_dtype="float32",
        compute_dtype="float32",
        memory_bytes=0,
        files=(),
    )
    anything: Any = SimpleNamespace(image_id=0, vocab_size=1)
    return Manifest(
        schema_version="1.0",
        created_by="",
        source={},
        model=anything,
        tokenizer=anything,
        image=anything,
        variants={
            "cpu-fp32": variant,
            "cpu-int8": variant,
            "cuda-fp16": dataclasses.replace(variant, device="cuda"),
        },
    )


def _providers(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: list(names))


def test_auto_takes_cuda_where_it_is_present(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    _providers(monkeypatch, "CUDAExecutionProvider", "CPUExecutionProvider")
    assert choose(manifest)[0] == "cuda-fp16"
    _providers(monkeypatch, "CPUExecutionProvider")
    assert choose(manifest)[0] == "cpu-fp32"


def test_auto_stays_on_the_processor_without_a_cuda_variant(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    _providers(monkeypatch, "CUDAExecutionProvider", "CPUExecutionProvider")
    cpu_only = {k: v for k, v in manifest.variants.items() if v.device == "cpu"}
    assert choose(dataclasses.replace(manifest, variants=cpu_only))[0] == "cpu-fp32"


def test_a_named_variant_is_taken(manifest: Manifest) -> None:
    assert choose(manifest, variant="cpu-int8")[0] == "cpu-int8"


def test_what_cannot_be_had_is_said(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    _providers(monkeypatch, "CUDAExecutionProvider", "CPUExecutionProvider")
    unknown: Any = "tpu"
    with pytest.raises(OptionError, match="device is 'tpu', wanted one of auto, cpu, cuda"):
        choose(manifest, unknown)
    with pytest.raises(OptionError, match="has cpu-fp32, cpu-int8, cuda-fp16"):
        choose(manifest, variant="cpu-int3")
    with pytest.raises(OptionError, match="made for cpu, device cuda"):
        choose(manifest, "cuda", "cpu-int8")
    cpu_only = {"cpu-fp32": manifest.variants["cpu-fp32"]}
    with pytest.raises(BundleError, match="no variant for cuda, only cpu-fp32 for cpu") as caught:
        choose(dataclasses.replace(manifest, variants=cpu_only), "cuda")
    assert "quantize" not in str(caught.value)  # which is no command
    unhashable: Any = []
    with pytest.raises(OptionError, match="variant is "):
        choose(manifest, variant=unhashable)


def test_cuda_without_cuda_is_an_error_and_no_run_on_the_processor(
    manifest: Manifest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _providers(monkeypatch, "CPUExecutionProvider")
    with pytest.raises(DeviceError, match="device cuda was asked for"):
        open_device("cuda")
    # The device is looked for before the bundle's variants are.
    with pytest.raises(DeviceError, match="device cuda was asked for"):
        choose(dataclasses.replace(manifest, variants={}), "cuda")


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


def test_telemetry_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(ort, "disable_telemetry_events", lambda: calls.append("off"))
    open_device("cpu")
    assert calls == ["off"]


@pytest.mark.parametrize(
    ("text", "cores"), [("max 100000\n", math.inf), ("150000 100000\n", 1.5), ("", math.inf)]
)
def test_the_quota_of_a_container_counts(tmp_path: Path, text: str, cores: float) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert devices._quota(tmp_path / "cpu.max") == cores
    assert devices._quota(tmp_path / "absent") == math.inf
