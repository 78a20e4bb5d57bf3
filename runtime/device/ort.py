"""ONNX Runtime itself, the one place that imports it: it sends and keeps nothing about its user.

From 1.30 on, its Linux build writes an identifier of the device and a queue of events into the
cache folder of the home, and starts threads that upload them, while it is imported. What a user
can call comes too late for that: `disable_telemetry_events` stops later events, not the upload.
Only `ORT_DISABLE_TELEMETRY`, read by the library as it is loaded, prevents all of it (ONNX
Runtime, docs/Privacy.md and core/platform/telemetry_environment.h). It is set whatever it was
before, and stays set for the processes that this one starts.

A program that imports `onnxruntime` itself before this module has to set the variable first.
"""

from __future__ import annotations

import os

from paligemma_edge.runtime.errors import MissingExtraError

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # by putenv, so that C's getenv sees it

try:
    import onnxruntime as ort
except ModuleNotFoundError as missing:
    if missing.name != "onnxruntime":
        raise
    raise MissingExtraError(
        "the package onnxruntime is not installed, and nothing runs without it; "
        "run: pip install 'paligemma-edge[cpu]', or [cuda] for an NVIDIA device"
    ) from None

ort.disable_telemetry_events()  # all that is left to do where it was imported before

__all__ = ["one_line", "ort"]


def one_line(error: BaseException) -> str:
    """A library's message without line breaks, at most 300 characters."""
    if isinstance(error, UnicodeDecodeError):  # ONNX Runtime could not hand its message to Python
        return "an error that names something which is not UTF-8"
    return " ".join(str(error).split())[:300]
