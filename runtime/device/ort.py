"""ONNX Runtime, or one line that says how to get it."""

from __future__ import annotations

from paligemma_edge.runtime.errors import MissingExtraError

try:
    import onnxruntime as ort
except ModuleNotFoundError as missing:
    if missing.name != "onnxruntime":
        raise
    raise MissingExtraError(
        "the package onnxruntime is not installed, and nothing runs without it; "
        "run: pip install 'paligemma-edge[cpu]', or [cuda] for an NVIDIA device"
    ) from None

__all__ = ["ort"]
