"""The import of ONNX Runtime: nothing is kept or sent, whatever the environment says."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from paligemma_edge.runtime.device import ort as guarded


def execute(monkeypatch: pytest.MonkeyPatch, value: str | None) -> list[str]:
    """Run the module beside a stand-in for ONNX Runtime; the calls that it gets."""
    calls: list[str] = []
    library = SimpleNamespace(disable_telemetry_events=lambda: calls.append(in_c()))
    monkeypatch.setitem(sys.modules, "onnxruntime", library)  # as if imported before
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", value or "")
    if value is None:
        monkeypatch.delenv("ORT_DISABLE_TELEMETRY")
    spec = importlib.util.spec_from_file_location("guarded", Path(guarded.__file__))
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    return calls


def in_c() -> str:
    """What the library reads."""
    getenv = ctypes.CDLL(None).getenv
    getenv.restype = ctypes.c_char_p
    return str((getenv(b"ORT_DISABLE_TELEMETRY") or b"").decode())


@pytest.mark.parametrize("value", [None, "", "0", "false", "1"])
def test_telemetry_is_off_whatever_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    assert execute(monkeypatch, value) == ["1"]
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"  # so that child processes inherit it
