"""Schemes in ONNX Runtime: the product with the dequantized weights, but for rounded inputs.

Codes are read from the written file and unpacked here once more, value by value.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from paligemma_edge.export.graphs.builder import FLOAT, Graph
from paligemma_edge.quantize.graphs.derived_weights import Float
from paligemma_edge.quantize.graphs.linear import linears
from paligemma_edge.quantize.rounding.rounding import Grid, round_rows
from paligemma_edge.quantize.schemes.blockwise import to_blockwise
from paligemma_edge.quantize.schemes.integer import to_integer
from tests.helpers.half_graphs import open_graph, run

Exact = NDArray[np.float64]
Bits = Literal[4, 8]

NAME, OUT, LEVELS = "decoder.layer", 24, 127  # of an input on either side of zero
WIDTHS = (128, 200, 16, 7)  # 200 and 7 leave a last block that must be filled up
SHAPES = ((1, 5), (3, 4), (6,), (1,))  # of [batch, tokens], or of the batch alone


@dataclass(frozen=True)
class Product:
    """What ONNX Runtime gave for x, and the weights that it was given, float64 [out, in]."""

    found: Exact
    exact: Exact
    weights: Exact


def model_of(weights: NDArray[np.floating[Any]], bias: Float | None, rank: int) -> ir.Model:
    """`x @ W.T + b`; without a token axis and without a bias as the LM head is written."""
    tensors = {f"{NAME}.weight": ir.tensor(weights)}
    if bias is not None:
        tensors[f"{NAME}.bias"] = ir.tensor(bias)
    graph = Graph.create("product", tensors)
    free = ("batch", "tokens")[: rank - 1]
    x = graph.input("x", FLOAT, [*free, weights.shape[1]])
    if rank == 2 and bias is None:
        y = graph.op.Gemm(x, graph.weight(f"{NAME}.weight"), transB=1)
    else:
        y = graph.linear(x, NAME, bias=bias is not None)
    graph.output(graph.op.Identity(y), "y", FLOAT, [*free, len(weights)])
    return graph.model()


def blockwise(model: ir.Model, bits: Bits, block: int) -> None:
    (layer,) = linears(model)
    rounding = partial(round_rows, grid=Grid(bits, block), method="nearest", moments=None)
    to_blockwise(model, layer, rounding, bits=bits, block=block)


def integer(model: ir.Model, inputs: int) -> None:
    (layer,) = linears(model)
    rounding = partial(round_rows, grid=Grid(8, None), method="nearest", moments=None)
    to_integer(model, layer, rounding, inputs=inputs)


def product(model: ir.Model, x: Float, bias: Float | None, bits: Bits, folder: Path) -> Product:
    path = folder / "product.onnx"
    found = run(open_graph(model, path), {"x": x})["y"].astype(np.float64)
    weights = stored_weights(path, bits, x.shape[-1])
    exact = x.astype(np.float64) @ weights.T + (0 if bias is None else bias)
    return Product(found, exact, weights)


def stored_weights(path: Path, bits: Bits, width: int) -> Exact:
    """The weights [out, in] that a file of either scheme stands for."""
    tensors = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    assert f"{NAME}.weight" not in tensors, "the float weight is still there"
    codes, scales = tensors[f"{NAME}.codes"], tensors[f"{NAME}.scales"].astype(np.float64)
    if codes.ndim == 2:
        return codes.T * scales[:, None]
    rows = []
    for row, row_scales in zip(codes, scales, strict=True):
        blocks = [unpacked(b, bits) * s for b, s in zip(row, row_scales, strict=True)]
        rows.append(np.concatenate(blocks))
    whole = np.array(rows)
    assert (whole[:, width:] == 0).all(), "what fills up the last block must stand for zero"
    return whole[:, :width]


def unpacked(block: NDArray[np.uint8], bits: Bits) -> Exact:
    values = []
    for byte in block.tolist():
        values += [byte % 16 - 8, byte // 16 - 8] if bits == 4 else [byte - 128]
    return np.array(values, np.float64)


def inputs_of(shape: tuple[int, ...], width: int) -> Float:
    """Tokens of very different sizes, and one of zeros."""
    rng = np.random.default_rng(width)
    x = rng.normal(size=(*shape, width)) * rng.choice([0.1, 1, 30], (*shape, 1))
    x.reshape(-1, width)[-1] = 0
    return np.asarray(x, np.float32)


def weights_of(width: int) -> Float:
    return np.random.default_rng(width + 1).normal(size=(OUT, width)).astype(np.float32)


def bias_of(*, there: bool) -> Float | None:
    return np.random.default_rng(9).normal(size=OUT).astype(np.float32) if there else None


def limit(x: Float, weights: Exact, half_steps: Exact) -> Exact:
    """The largest error of each output: inputs off by half a step, and float32's own."""
    sizes = np.abs(weights).T
    return half_steps * 1.001 @ sizes + 1e-6 * (np.abs(x) @ sizes) + 1e-6


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("block", [16, 32, 64, 128])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_blockwise_product_is_that_of_its_codes(
    bits: Bits, block: int, shape: tuple[int, ...], bias: bool, tmp_path: Path
) -> None:
    for width in WIDTHS:
        x, added = inputs_of(shape, width), bias_of(there=bias)
        model = model_of(weights_of(width), added, x.ndim)
        blockwise(model, bits, block)
        done = product(model, x, added, bits, tmp_path)
        half_steps = peaks_of_blocks(x, block) / LEVELS / 2
        assert (np.abs(done.found - done.exact) <= limit(x, done.weights, half_steps)).all()


def peaks_of_blocks(x: Float, block: int) -> Exact:
    """The largest magnitude around each input, within its block of its token."""
    peaks = np.zeros(x.shape, np.float64)
    for start in range(0, x.shape[-1], block):
        part = np.abs(x[..., start : start + block])
        peaks[..., start : start + block] = part.max(axis=-1, keepdims=True)
    return peaks


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("inputs", [8, 16])
def test_an_integer_product_is_that_of_its_codes(
    inputs: int, shape: tuple[int, ...], bias: bool, tmp_path: Path
) -> None:
    for width in WIDTHS:
        x, added = inputs_of(shape, width), bias_of(there=bias)
        model = model_of(weights_of(width), added, x.ndim)
        integer(model, inputs)
        done = product(model, x, added, 8, tmp_path)
        steps = LEVELS if inputs == 8 else LEVELS * 254
        half_steps = np.abs(x).max(axis=-1, keepdims=True).astype(np.float64) / steps / 2
        bound = limit(x, done.weights, np.broadcast_to(half_steps, x.shape))
        assert (np.abs(done.found - done.exact) <= bound).all()


@pytest.mark.parametrize("scheme", ["4", "8", "integer 8", "integer 16"])
def test_codes_come_near_the_weights(scheme: str, tmp_path: Path) -> None:
    weights, x = weights_of(200), inputs_of((3,), 200)
    model = model_of(weights, None, 2)
    bits = apply(model, scheme)
    done = product(model, x, None, bits, tmp_path)
    step = np.abs(weights).max(axis=1, keepdims=True) / (7 if bits == 4 else 127)
    assert (np.abs(done.weights - weights) <= step).all()


def apply(model: ir.Model, scheme: str) -> Bits:
    """Put a scheme in place; the bits of its weights."""
    if scheme.startswith("integer"):
        integer(model, int(scheme.split()[1]))
        return 8
    bits: Bits = 4 if scheme == "4" else 8
    blockwise(model, bits, 32)
    return bits


@pytest.mark.parametrize("scheme", ["4", "8", "integer 8", "integer 16"])
@pytest.mark.parametrize("sign", [-1, 1])
def test_a_scale_may_be_negative(scheme: str, sign: int, tmp_path: Path) -> None:
    """The largest value of a block takes the lowest code, be it positive."""
    weights = np.full((OUT, 32), sign, np.float32)
    weights[:, 3] = 8 * sign
    x = np.random.default_rng(0).normal(size=(4, 32)).astype(np.float32)
    model = model_of(weights, None, 2)
    done = product(model, x, None, apply(model, scheme), tmp_path)
    tensors = {t.name: t for t in onnx.load(tmp_path / "product.onnx").graph.initializer}
    scales = numpy_helper.to_array(tensors[f"{NAME}.scales"])
    assert (np.sign(scales) == -sign).all()
    np.testing.assert_allclose(done.weights, weights, rtol=0.01)
    np.testing.assert_allclose(done.found, done.exact, rtol=0, atol=0.3)


@pytest.mark.parametrize("inputs", [8, 16])
def test_no_integer_answer_depends_on_its_neighbours(inputs: int, tmp_path: Path) -> None:
    x = inputs_of((2, 4), 128)
    x[1, 2] *= 1000
    model = model_of(weights_of(128), bias_of(there=True), 3)
    integer(model, inputs)
    session = open_graph(model, tmp_path / "product.onnx")
    together = run(session, {"x": x})["y"]
    for batch, token in np.ndindex(2, 4):
        alone = run(session, {"x": x[batch : batch + 1, token : token + 1]})["y"]
        np.testing.assert_array_equal(alone[0, 0], together[batch, token])


def test_inputs_of_16_bits_are_much_finer(tmp_path: Path) -> None:
    x, errors = inputs_of((8,), 128), []
    for inputs in (8, 16):
        model = model_of(weights_of(128), None, 2)
        integer(model, inputs)
        done = product(model, x, None, 8, tmp_path)
        errors.append(float(np.abs(done.found - done.exact).mean()))
    assert errors[1] < errors[0] / 100


@pytest.mark.parametrize("scheme", ["4", "8", "integer 8", "integer 16"])
def test_a_stored_half_precision_weight_is_rounded_too(scheme: str, tmp_path: Path) -> None:
    """The `Cast` that read it goes with it."""
    weights = weights_of(32).astype(np.float16)
    model = model_of(weights, bias_of(there=True), 3)
    bits = apply(model, scheme)
    assert not [node for node in model.graph if node.op_type == "Cast"]
    done = product(model, inputs_of((1, 3), 32), bias_of(there=True), bits, tmp_path)
    step = np.abs(weights.astype(np.float64)).max(axis=1, keepdims=True)
    assert (np.abs(done.weights - weights) <= step / (7 if bits == 4 else 127)).all()


def test_names_stay_and_a_layer_is_rounded_once(tmp_path: Path) -> None:
    model = model_of(weights_of(32), None, 3)
    blockwise(model, 4, 16)
    assert linears(model) == []
    node, _ = list(model.graph)
    wanted: dict[str, Any] = {"K": 32, "N": OUT, "bits": 4, "block_size": 16, "accuracy_level": 4}
    assert {name: found.as_int() for name, found in node.attributes.items()} == wanted
    assert [value.name for value in model.graph.outputs] == ["y"]
    first = run(open_graph(model, tmp_path / "a.onnx"), {"x": inputs_of((1, 2), 32)})["y"]
    again = run(open_graph(model, tmp_path / "b.onnx"), {"x": inputs_of((1, 2), 32)})["y"]
    np.testing.assert_array_equal(first, again)
    one, two = (stored_weights(tmp_path / name, 4, 32) for name in ("a.onnx", "b.onnx"))
    np.testing.assert_array_equal(one, two)
