"""A graph on disk: its weights in a file of their own, on pages of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from paligemma_edge.quantize.graphs.graph_file import (
    PAGE,
    Written,
    disk_bytes,
    weight_bytes,
    write_graph,
)
from paligemma_edge.runtime.device.ort import ort


@pytest.fixture
def model() -> ir.Model:
    rng = np.random.default_rng(0)
    x = ir.val("x", dtype=ir.DataType.FLOAT, shape=["n", 50])
    large = ir.tensor(rng.standard_normal((50, 60)).astype(np.float32), name="large")
    larger = ir.LazyTensor(
        lambda: ir.tensor(np.ones((60, 70), np.float32)),
        dtype=ir.DataType.FLOAT,
        shape=ir.Shape([60, 70]),
        name="larger",
    )
    small = ir.tensor(rng.standard_normal(70).astype(np.float32), name="small")
    tape = ir.tape.Tape()
    values = [tape.initializer(tensor) for tensor in (large, larger, small)]
    y = tape.op("MatMul", [tape.op("MatMul", [x, values[0]]), values[1]])
    y = tape.op("Add", [y, values[2]])
    y.name, y.type, y.shape = "y", ir.TensorType(ir.DataType.FLOAT), ir.Shape(["n", 70])
    graph = ir.Graph(
        [x], [y], nodes=tape.nodes, initializers=values, opset_imports={"": 21}, name="g"
    )
    return ir.Model(graph, ir_version=10)


def test_the_graph_computes_the_same_from_its_files(model: ir.Model, tmp_path: Path) -> None:
    x = np.random.default_rng(1).standard_normal((3, 50)).astype(np.float32)
    w = {k: v.const_value.numpy() for k, v in model.graph.initializers.items() if v.const_value}
    write_graph(model, tmp_path / "g.onnx")
    session = ort.InferenceSession(tmp_path / "g.onnx", providers=["CPUExecutionProvider"])
    (y,) = session.run(["y"], {"x": x})
    np.testing.assert_allclose(y, x @ w["large"] @ w["larger"] + w["small"], rtol=1e-4)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["g.onnx", "g.onnx.data"]


def test_large_weights_start_on_a_page_and_small_ones_stay(model: ir.Model, tmp_path: Path) -> None:
    write_graph(model, tmp_path / "g.onnx")
    proto = onnx.load(tmp_path / "g.onnx", load_external_data=False)
    places = {i.name: {e.key: e.value for e in i.external_data} for i in proto.graph.initializer}
    assert places["small"] == {}
    assert all(int(places[name]["offset"]) % PAGE == 0 for name in ("large", "larger"))


def test_the_model_in_memory_stays_as_it_was(model: ir.Model, tmp_path: Path) -> None:
    before = [value.const_value for value in model.graph.initializers.values()]
    write_graph(model, tmp_path / "g.onnx")
    after = [value.const_value for value in model.graph.initializers.values()]
    assert all(a is b for a, b in zip(before, after, strict=True))


def test_progress_adds_up(model: ir.Model, tmp_path: Path) -> None:
    sizes: list[int] = []
    write_graph(model, tmp_path / "g.onnx", sizes.append)
    small = 70 * 4
    assert sum(sizes) + small == weight_bytes(model)


def test_graphs_of_a_folder_store_the_weights_that_they_share_once(
    model: ir.Model, tmp_path: Path
) -> None:
    x = np.random.default_rng(1).standard_normal((3, 50)).astype(np.float32)
    other = model.clone()
    own = other.graph.initializers["larger"]
    own.const_value = ir.tensor(np.full((60, 70), 2, np.float32), name="larger")
    assert disk_bytes([model, other]) == weight_bytes(model) + own.const_value.nbytes
    beside: Written = {}
    for name, graph in (("first", model), ("second", other)):
        write_graph(graph, tmp_path / f"{name}.onnx", beside=beside)
    assert (tmp_path / "second.onnx.data").stat().st_size == own.const_value.nbytes
    files = [tmp_path / name for name in ("first.onnx", "second.onnx")]
    sessions = [ort.InferenceSession(f, providers=["CPUExecutionProvider"]) for f in files]
    (first,), (second,) = (session.run(["y"], {"x": x}) for session in sessions)
    small = model.graph.initializers["small"].const_value
    assert small is not None
    np.testing.assert_allclose(second - small.numpy(), 2 * (first - small.numpy()), rtol=1e-3)
