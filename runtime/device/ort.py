"""ONNX Runtime itself, or an error that says how to install it."""

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

__all__ = ["one_line", "ort"]


def one_line(error: BaseException) -> str:
    """A library's message without line breaks, at most 300 characters."""
    return " ".join(str(error).split())[:300]
