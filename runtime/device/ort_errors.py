"""ONNX Runtime's failures as ours, where a graph runs or memory is used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from paligemma_edge.runtime.device.cuda.errors import explain
from paligemma_edge.runtime.device.ort import one_line
from paligemma_edge.runtime.errors import DeviceError


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
