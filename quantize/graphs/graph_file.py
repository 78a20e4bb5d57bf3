"""One graph in memory as two files: `NAME.onnx` and its weights in `NAME.onnx.data`.

Weights that several graphs of a folder share are stored in the file of the first of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeAlias

import onnx
import onnx_ir as ir

# Weights start on pages of their own, so that ONNX Runtime maps them into memory.
PAGE = 4096
# Small tensors stay in the graph, where ONNX Runtime can fold them.
INLINE_BYTES = 1024

Written: TypeAlias = dict[ir.TensorProtocol, ir.ExternalTensor]  # where each tensor is stored


def write_graph(
    model: ir.Model,
    path: Path,
    progress: Callable[[int], None] | None = None,
    beside: Written | None = None,
) -> None:
    """Write tensors one by one, in the order of the graph, then the graph that names them.

    The model in memory is left as it is. `progress` is called with each tensor's bytes.
    `beside` holds the tensors that the folder's other graphs have written: this graph refers to
    them there, and adds its own.
    """
    values = list(model.graph.initializers.values())
    large = [v for v in values if _tensor(v).nbytes > INLINE_BYTES]
    small = [v for v in values if _tensor(v).nbytes <= INLINE_BYTES]
    kept, inline = [_tensor(v) for v in large], [_tensor(v) for v in small]
    known = {} if beside is None else beside
    try:
        _point(small, [_in_memory(tensor) for tensor in inline])
        new = [tensor for tensor in dict.fromkeys(kept) if tensor not in known]
        _write(new, path, progress, known)
        _point(large, [known[tensor] for tensor in kept])
        path.write_bytes(ir.to_proto(model).SerializeToString())
        onnx.checker.check_model(path)
    finally:
        _point(large, kept)
        _point(small, inline)


def _write(
    tensors: Sequence[ir.TensorProtocol],
    path: Path,
    progress: Callable[[int], None] | None,
    known: Written,
) -> None:
    if tensors:
        written = ir.external_data.convert_tensors_to_external(
            tensors,
            path.parent,
            f"{path.name}.data",
            callback=None if progress is None else lambda t, _: progress(t.nbytes),
            alignment=PAGE,
            align_threshold=PAGE,
        )
        known.update(zip(tensors, written, strict=True))


def weight_bytes(model: ir.Model) -> int:
    """Bytes of the graph's weights."""
    return sum(_tensor(v).nbytes for v in model.graph.initializers.values())


def disk_bytes(models: Iterable[ir.Model]) -> int:
    """Bytes that the weights of some graphs take in one folder, each tensor once."""
    values = (value for model in models for value in model.graph.initializers.values())
    return sum(tensor.nbytes for tensor in set(map(_tensor, values)))


def _point(values: Sequence[ir.Value], tensors: Sequence[ir.TensorProtocol]) -> None:
    for value, tensor in zip(values, tensors, strict=True):
        value.const_value = tensor


def _in_memory(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """A lazy tensor, read before onnx_ir does: it would wrap the error that reading raises."""
    if not isinstance(tensor, ir.LazyTensor):
        return tensor
    return ir.Tensor(tensor.numpy(), tensor.dtype, name=tensor.name)


def _tensor(value: ir.Value) -> ir.TensorProtocol:
    assert value.const_value is not None, f"initializer {value.name} has no tensor"
    return value.const_value
