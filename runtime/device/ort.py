"""ONNX Runtime itself, or an error that says how to install it; and its failures as ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from paligemma_edge.runtime.device.cuda.errors import explain
from paligemma_edge.runtime.errors import DeviceError, MissingExtraError

try:
    import onnxruntime as ort
except ModuleNotFoundError as missing:
    if missing.name != "onnxruntime":
        raise
    raise MissingExtraError(
        "the package onnxruntime is not installed, and nothing runs without it; "
        "run: pip install 'paligemma-edge[cpu]', or [cuda] for an NVIDIA device"
    ) from None

__all__ = ["one_line", "ort", "wrap_ort_errors"]


@contextmanager
def wrap_ort_errors(what: str, device: str) -> Iterator[None]:
    """Raise DeviceError in place of ONNX Runtime's exceptions, a different class for each code."""
    try:
        yield
    except DeviceError:
        raise
    except Exception as error:  # a different class for each code
        known = explain(error) if device == "cuda" else None
        unknown = f"{one_line(error)}; request a shorter answer or fewer slots if memory ran out"
        raise DeviceError(f"{what}: {known or unknown}") from None


def one_line(error: BaseException) -> str:
    """A library's message without line breaks, at most 300 characters."""
    return " ".join(str(error).split())[:300]
