"""How stored tensors become operands: values are moved, never changed."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from paligemma_edge.export.graphs.builder import Graph, joined, transposed


def tensors(dtype: type, *shapes: tuple[int, ...]) -> list[ir.TensorProtocol]:
    rng = np.random.default_rng(0)
    return [
        ir.tensor(rng.standard_normal(shape).astype(dtype), name=str(i))
        for i, shape in enumerate(shapes)
    ]


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_matrices_are_joined_side_by_side(dtype: type) -> None:
    sources = tensors(dtype, (5, 7), (33, 7), (16, 7))
    matrix = transposed("w", sources)
    assert tuple(matrix.shape) == (7, 54)
    expected = np.concatenate([s.numpy() for s in sources]).T
    assert matrix.numpy().tobytes() == np.ascontiguousarray(expected).tobytes()
    assert matrix.dtype == sources[0].dtype


def test_vectors_are_concatenated() -> None:
    sources = tensors(np.float16, (3,), (4,))
    row = joined("b", sources)
    assert row.numpy().tobytes() == b"".join(s.tobytes() for s in sources)


def test_mixed_dtypes_become_float32() -> None:
    half, single = tensors(np.float16, (2, 3)) + tensors(np.float32, (4, 3))
    matrix = transposed("w", [half, single])
    assert matrix.dtype == ir.DataType.FLOAT
    assert np.array_equal(matrix.numpy()[:, :2], half.numpy().astype(np.float32).T)


def test_a_tensor_that_is_used_twice_is_stored_once() -> None:
    (table,) = tensors(np.float32, (4, 3))
    graph = Graph.create("g", {"table": table})
    assert graph.stored("table") is graph.stored("table")
    assert list(graph.builder.graph.initializers) == ["table"]
