"""One graph in memory as two files: `NAME.onnx` and its weights in `NAME.onnx.data`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import onnx
import onnx_ir as ir

# Weights start on pages of their own, so that ONNX Runtime maps them into memory.
PAGE = 4096
# Small tensors stay in the graph, where ONNX Runtime can fold them.
INLINE_BYTES = 1024


def write_graph(model: ir.Model, path: Path, progress: Callable[[int], None] | None = None) -> None:
    """Write tensors one by one, in the order of the graph, then the graph that names them.

    The model in memory is left as it is. `progress` is told each tensor's bytes.
    """
    large = [v for v in model.graph.initializers.values() if _tensor(v).nbytes > INLINE_BYTES]
    kept = [_tensor(v) for v in large]
    try:
        written = ir.external_data.convert_tensors_to_external(
            kept,
            path.parent,
            f"{path.name}.data",
            callback=None if progress is None else lambda t, _: progress(t.nbytes),
            alignment=PAGE,
            align_threshold=PAGE,
        )
        _point(large, written)
        path.write_bytes(ir.to_proto(model).SerializeToString())
        onnx.checker.check_model(path)
    finally:
        _point(large, kept)


def weight_bytes(model: ir.Model) -> int:
    """Bytes that the graph's weights take on disk."""
    return sum(_tensor(v).nbytes for v in model.graph.initializers.values())


def _point(values: Sequence[ir.Value], tensors: Sequence[ir.TensorProtocol]) -> None:
    for value, tensor in zip(values, tensors, strict=True):
        value.const_value = tensor


def _tensor(value: ir.Value) -> ir.TensorProtocol:
    assert value.const_value is not None, f"initializer {value.name} has no tensor"
    return value.const_value
