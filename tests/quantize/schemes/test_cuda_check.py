"""What the CUDA provider has kernels for, and what it would leave to the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from paligemma_edge.quantize.graphs.linear import linears
from paligemma_edge.quantize.rounding.rounding import Grid, Rounded, round_rows
from paligemma_edge.quantize.schemes.blockwise import to_blockwise
from paligemma_edge.quantize.schemes.cuda_check import (
    check_cuda_graph,
    missing_kernels,
    slow_products,
)
from paligemma_edge.quantize.schemes.half import to_half
from paligemma_edge.quantize.schemes.integer import to_integer
from tests.helpers.half_graphs import GRAPHS, load

FLOAT, HALF, BRAIN = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16


def rounded(rows: np.ndarray, block: int | None = 32) -> Rounded:
    return round_rows(rows, Grid(8, block), "nearest", None)


def node_graph(
    op: str, dtype: ir.DataType, *, domain: str = "", opset: int = 23, inputs: int = 1
) -> ir.Model:
    values = [ir.val(f"x{i}", dtype=dtype, shape=[2, 2]) for i in range(inputs)]
    node = ir.node(op, values, domain=domain)
    node.outputs[0].name, node.outputs[0].type = "y", ir.TensorType(dtype)
    opsets = {"": opset, "com.microsoft": 1}
    graph = ir.Graph(values, node.outputs, nodes=[node], opset_imports=opsets, name="g")
    return ir.Model(graph, ir_version=10)


@pytest.mark.parametrize("dtype", [HALF, BRAIN])
@pytest.mark.parametrize("name", GRAPHS)
def test_graphs_in_half_precision_run_on_cuda_alone(
    name: str, dtype: ir.DataType, shapes_bundle: Path
) -> None:
    model = load(shapes_bundle)[name]
    to_half(model, dtype, keep_float=["decoder.layers.1.down_proj", "vision.layers.2.fc1"])
    assert check_cuda_graph(name, model, dtype) == []


def test_a_float32_decoder_does_not(shapes_bundle: Path) -> None:
    problems = check_cuda_graph("decoder", load(shapes_bundle)["decoder"], HALF)
    wanted = "decoder: GroupQueryAttention rotary.cos has no CUDA kernel for float"
    assert problems.count(wanted) == 4
    assert "decoder: input image_features is float, wanted float16" in problems
    assert not any("logits" in problem for problem in problems)


def test_the_mask_decoder_runs_on_cuda_in_float32(shapes_bundle: Path) -> None:
    model = ir.load(shapes_bundle / "cpu-fp32" / "mask_decoder.onnx")
    assert check_cuda_graph("mask_decoder", model, FLOAT) == []


def test_rounded_products_of_the_right_shape_are_quick(shapes_bundle: Path) -> None:
    model = load(shapes_bundle)["decoder"]
    for layer in linears(model):
        to_blockwise(model, layer, rounded, bits=8, block=32)
    to_half(model, HALF)
    assert check_cuda_graph("decoder", model, HALF) == []


def test_integer_products_have_no_kernels(shapes_bundle: Path) -> None:
    model = load(shapes_bundle)["projector"]
    (layer,) = linears(model)
    to_integer(model, layer, lambda rows: rounded(rows, None), inputs=8)
    problems = "\n".join(missing_kernels("projector", model, FLOAT))
    assert "projector: MatMulIntegerToFloat projector.codes has no CUDA kernel" in problems


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        (node_graph("Abs", HALF), None),
        (node_graph("Clip", HALF), None),
        (node_graph("Tanh", FLOAT), None),
        (node_graph("Tanh", BRAIN), None),
        (node_graph("Clip", BRAIN), "Clip y has no CUDA kernel for bfloat16"),
        (node_graph("Gelu", HALF, domain="com.microsoft"), "Gelu y has no CUDA kernel in this"),
        (node_graph("NoSuchThing", HALF), "NoSuchThing y has no CUDA kernel in this opset"),
        (node_graph("Relu", HALF, opset=13), None),
        (node_graph("Relu", HALF, opset=12), "Relu y has no CUDA kernel in this opset"),
        (node_graph("RMSNormalization", HALF, inputs=2), None),
    ],
)
def test_kernels_by_operator_version_and_dtype(model: ir.Model, problem: str | None) -> None:
    found = missing_kernels("g", model, model.graph.inputs[0].dtype or FLOAT)
    assert (found == []) if problem is None else (f"g: {problem}" in found[0])


def test_two_float_dtypes_at_one_node_are_reported() -> None:
    model = node_graph("Add", HALF, inputs=2)
    model.graph.inputs[1].type = ir.TensorType(BRAIN)
    assert "g: Add y mixes bfloat16 and float16" in missing_kernels("g", model, HALF)


def test_a_value_of_unknown_dtype_is_reported() -> None:
    model = node_graph("Relu", HALF)
    model.graph.outputs[0].type = None
    assert missing_kernels("g", model, HALF) == [
        "g: Relu y reads or makes a value of unknown dtype"
    ]


def test_a_shape_that_the_device_computes_is_a_copy() -> None:
    shape = ir.node("Abs", [ir.val("s", dtype=ir.DataType.INT64, shape=[2])])
    shape.outputs[0].name, shape.outputs[0].type = "shape", ir.TensorType(ir.DataType.INT64)
    x = ir.val("x", dtype=HALF, shape=[4])
    reshape = ir.node("Reshape", [x, shape.outputs[0]])
    reshape.outputs[0].name, reshape.outputs[0].type = "y", ir.TensorType(HALF)
    inputs = [x, *(value for value in shape.inputs if value is not None)]
    nodes = [shape, reshape]
    graph = ir.Graph(inputs, reshape.outputs, nodes=nodes, opset_imports={"": 23}, name="g")
    assert missing_kernels("g", ir.Model(graph, ir_version=10), HALF) == [
        "g: Reshape y reads shape on the host, which the device computes"
    ]


@pytest.mark.parametrize(
    ("bits", "block", "width", "count", "inputs", "problem"),
    [
        (4, 32, 64, 128, 3, None),
        (8, 32, 64, 96, 3, None),
        (4, 32, 64, 96, 3, "has 96 outputs, wanted a multiple of 64 for 4 bits"),
        (8, 32, 64, 80, 3, "has 80 outputs, wanted a multiple of 32 for 8 bits"),
        (4, 32, 80, 128, 3, "has 80 inputs, wanted a multiple of 32"),
        (4, 128, 128, 128, 3, "has 4 bits in blocks of 128, wanted 4 or 8 bits in blocks of 32"),
        (2, 32, 64, 128, 3, "has 2 bits in blocks of 32"),
        (4, 32, 64, 128, 4, "has zero points or a bias"),
    ],
)
def test_slow_products(
    bits: int, block: int, width: int, count: int, inputs: int, problem: str | None
) -> None:
    model = node_graph("MatMulNBits", HALF, domain="com.microsoft", inputs=inputs)
    (node,) = model.graph
    for name, value in {"bits": bits, "block_size": block, "K": width, "N": count}.items():
        node.attributes.add(ir.AttrInt64(name, value))
    found = slow_products("g", model)
    assert (found == []) if problem is None else (len(found) == 1 and problem in found[0])
