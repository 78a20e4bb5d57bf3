"""Half precision: dtypes, weights byte for byte, and numbers close to those of float32."""

from __future__ import annotations

import io
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from paligemma_edge.quantize.graphs import stored_weights
from paligemma_edge.quantize.graphs.constants import add_constant
from paligemma_edge.quantize.graphs.linear import linears, set_float, tensor_of
from paligemma_edge.quantize.rounding.rounding import Grid, round_rows
from paligemma_edge.quantize.schemes.blockwise import to_blockwise
from paligemma_edge.quantize.schemes.half import Halved, to_half
from paligemma_edge.runtime.bundle.bundle import Bundle
from paligemma_edge.runtime.errors import OptionError
from paligemma_edge.runtime.images.load import load_image
from paligemma_edge.runtime.images.preprocess import pixel_values
from paligemma_edge.runtime.loading.graph_check import check_graph
from paligemma_edge.runtime.manifest import Manifest
from tests.helpers.half_graphs import GRAPHS, Array, answers, emulate, load, open_graph, run

FLOAT, HALF, BRAIN = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16
STORED = {HALF: np.dtype(np.float16), BRAIN: np.dtype(ml_dtypes.bfloat16)}


def operand(node: ir.Node, place: int) -> ir.Value:
    value = node.inputs[place]
    assert value is not None
    return value


def only_user(value: ir.Value) -> ir.Node:
    (use,) = value.uses()
    return use.node


@pytest.fixture(scope="module")
def manifest(shapes_bundle: Path) -> Manifest:
    return Bundle.open(shapes_bundle).manifest


@pytest.fixture(scope="module")
def pixels(manifest: Manifest, shapes_images: Path) -> Array:
    image = shapes_images / "00.png"
    return pixel_values(load_image(image), manifest.image)[None]


@pytest.fixture(scope="module")
def exact(
    shapes_bundle: Path,
    manifest: Manifest,
    pixels: Array,
    tmp_path_factory: pytest.TempPathFactory,
) -> Array:
    folder = tmp_path_factory.mktemp("exact") / "graphs"
    return answers(load(shapes_bundle), manifest.model, pixels, folder)


def test_float16_answers_as_float32_does(
    shapes_bundle: Path, manifest: Manifest, pixels: Array, exact: Array, tmp_path: Path
) -> None:
    graphs = load(shapes_bundle)
    for model in graphs.values():
        to_half(model, HALF)
    logits = answers(graphs, manifest.model, pixels, tmp_path / "half")
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, exact, rtol=0, atol=2e-2)
    assert not np.array_equal(logits, exact)


@pytest.mark.parametrize(("dtype", "tolerance"), [(HALF, 2e-2), (BRAIN, 0.1)])
def test_answers_are_close_with_every_result_rounded(
    dtype: ir.DataType,
    tolerance: float,
    shapes_bundle: Path,
    manifest: Manifest,
    pixels: Array,
    exact: Array,
    tmp_path: Path,
) -> None:
    graphs = load(shapes_bundle)
    for model in graphs.values():
        to_half(model, dtype)
        emulate(model, dtype)
    logits = answers(graphs, manifest.model, pixels, tmp_path / "half")
    np.testing.assert_allclose(logits, exact, rtol=0, atol=tolerance)
    np.testing.assert_array_equal(logits, logits.astype(STORED[dtype]).astype(np.float32))


@pytest.mark.parametrize("name", GRAPHS)
def test_inputs_and_outputs_are_those_of_the_contract(
    name: str, shapes_bundle: Path, manifest: Manifest, tmp_path: Path
) -> None:
    model = load(shapes_bundle)[name]
    to_half(model, HALF)
    check_graph(name, open_graph(model, tmp_path / "g.onnx"), manifest, "float16")


@pytest.mark.parametrize("name", GRAPHS)
def test_inputs_and_outputs_are_of_the_dtype_that_was_asked_for(
    name: str, shapes_bundle: Path
) -> None:
    model = load(shapes_bundle)[name]
    before = {v.name: v.dtype for v in (*model.graph.inputs, *model.graph.outputs)}
    to_half(model, BRAIN)
    for value in (*model.graph.inputs, *model.graph.outputs):
        stays = before[value.name] != FLOAT or value.name in ("pixel_values", "logits")
        assert value.dtype == (before[value.name] if stays else BRAIN), value.name


@pytest.mark.parametrize("dtype", [HALF, BRAIN])
def test_products_are_in_half_precision_and_sums_are_not(
    dtype: ir.DataType, shapes_bundle: Path
) -> None:
    wanted = {"MatMul": dtype, "Gemm": dtype, "GroupQueryAttention": dtype, "Gelu": dtype}
    wanted |= {"Conv": dtype, "MultiHeadAttention": dtype}
    wanted |= {"RMSNormalization": FLOAT, "LayerNormalization": FLOAT, "Concat": FLOAT}
    for model in load(shapes_bundle).values():
        to_half(model, dtype)
        for node in model.graph:
            if node.op_type in wanted:
                assert node.outputs[0].dtype == wanted[node.op_type], node
            if node.op_type == "Add":
                bias = str(node.inputs[1] and node.inputs[1].name).endswith(".bias")
                assert node.outputs[0].dtype == (dtype if bias else FLOAT), node


@pytest.mark.parametrize("dtype", [HALF, BRAIN])
def test_the_scale_of_embeddings_is_not_rounded(
    dtype: ir.DataType, shapes_bundle: Path, manifest: Manifest
) -> None:
    model = load(shapes_bundle)["decoder"]
    to_half(model, dtype)
    (table,) = [node for node in model.graph if node.op_type == "Gather"]
    cast = only_user(table.outputs[0])
    scale = only_user(cast.outputs[0])
    constant = tensor_of(operand(scale, 1)).numpy()
    assert constant.dtype == np.float32
    assert constant == np.float32(manifest.model.hidden_size**0.5)
    assert operand(scale, 0).dtype == scale.outputs[0].dtype == FLOAT


def test_bfloat16_weights_stay_as_they_are_stored(shapes_bundle: Path) -> None:
    for model in load(shapes_bundle).values():
        before = {name: value.const_value for name, value in model.graph.initializers.items()}
        to_half(model, BRAIN)
        after = model.graph.initializers
        kept = [name for name, tensor in before.items() if tensor and tensor.dtype == BRAIN]
        assert kept
        assert all(after[name].const_value is before[name] for name in kept)


@pytest.mark.parametrize("dtype", [HALF, BRAIN])
def test_weights_are_stored_once_in_half_precision(dtype: ir.DataType, shapes_bundle: Path) -> None:
    model = load(shapes_bundle)["decoder"]
    table = np.array(tensor_of(model.graph.initializers["decoder.embed_tokens.weight"]).numpy())
    to_half(model, dtype)
    large = {n: v.dtype for n, v in model.graph.initializers.items() if tensor_of(v).size > 10_000}
    assert set(large.values()) == {dtype}
    assert len(large) == 4 * 5 + 1 + 2  # layers, table, rotary tables
    stored = tensor_of(model.graph.initializers["decoder.embed_tokens.weight"]).numpy()
    np.testing.assert_array_equal(stored, table.astype(STORED[dtype]))


def test_no_weight_is_read_before_it_is_written(shapes_bundle: Path) -> None:
    def refuse() -> ir.Tensor[Array]:
        raise AssertionError("a weight was read")

    for model in load(shapes_bundle).values():
        for value in model.graph.initializers.values():
            tensor = tensor_of(value)
            if tensor.size > 10_000:
                value.const_value = ir.LazyTensor(
                    refuse, tensor.dtype, ir.Shape(tensor.shape.numpy()), name=value.name
                )
        to_half(model, HALF)


def test_layers_can_be_kept_in_float32(
    shapes_bundle: Path, manifest: Manifest, pixels: Array, exact: Array, tmp_path: Path
) -> None:
    kept = ("decoder.layers.1.up_proj", "decoder.layers.1.down_proj", "vision.layers.0.qkv_proj")
    graphs = load(shapes_bundle)
    for model in graphs.values():
        to_half(model, HALF, keep_float=kept)
        for layer in linears(model):
            wanted = FLOAT if layer.name in kept else HALF
            assert layer.input.dtype == layer.node.outputs[0].dtype == wanted, layer.name
            assert operand(layer.node, 1).dtype == wanted
    product = next(x for x in linears(graphs["decoder"]) if x.name == kept[1]).input.producer()
    assert product is not None
    assert product.op_type == "Mul"
    assert product.outputs[0].dtype == FLOAT
    logits = answers(graphs, manifest.model, pixels, tmp_path / "half")
    np.testing.assert_allclose(logits, exact, rtol=0, atol=2e-2)


def test_a_head_in_float32_reads_the_table_as_it_was(shapes_bundle: Path) -> None:
    model = load(shapes_bundle)["decoder"]
    name = "decoder.embed_tokens.weight"
    values = model.graph.initializers[name]
    before = np.array(tensor_of(values).numpy(), np.float32) + np.float32(1e-4)
    set_float(values, ir.tensor(before, name=name))
    to_half(model, HALF, keep_float=["decoder.embed_tokens"])
    (gather,) = [node for node in model.graph if node.op_type == "Gather"]
    (head,) = [node for node in model.graph if node.op_type == "Gemm"]
    np.testing.assert_array_equal(tensor_of(operand(head, 1)).numpy(), before)
    assert operand(gather, 0).dtype == HALF
    assert head.outputs[0].dtype == FLOAT


@pytest.mark.parametrize("bits", [4, 8])
def test_rounded_products_take_part(
    bits: int, shapes_bundle: Path, manifest: Manifest, pixels: Array, tmp_path: Path
) -> None:
    results = []
    for dtype in (None, HALF):
        graphs = load(shapes_bundle)
        for layer in linears(graphs["decoder"]):
            to_blockwise(
                graphs["decoder"],
                layer,
                lambda rows: round_rows(rows, Grid(4 if bits == 4 else 8, 32), "nearest", None),
                bits=bits,
                block=32,
            )
        for model in graphs.values() if dtype is not None else ():
            to_half(model, dtype or HALF)
        scales = [v.dtype for n, v in graphs["decoder"].graph.initializers.items() if "scales" in n]
        assert set(scales) == {dtype or FLOAT}
        results.append(answers(graphs, manifest.model, pixels, tmp_path / str(dtype)))
    # An input on the edge between two of its 8-bit codes may fall to the other side.
    assert np.abs(results[0] - results[1]).max() < 0.2


def test_integers_keep_their_dtype(shapes_bundle: Path) -> None:
    model = load(shapes_bundle)["decoder"]
    (head,) = [node for node in model.graph if node.op_type == "Gemm"]
    count = add_constant(model, "count", np.array([3]))
    best = ir.node("TopK", [head.outputs[0], count], num_outputs=2)
    model.graph.insert_after(head, best)
    best.outputs[1].name = "best"
    best.outputs[1].type = ir.TensorType(ir.DataType.INT64)
    model.graph.outputs.append(best.outputs[1])
    to_half(model, HALF)
    assert [output.dtype for output in best.outputs] == [FLOAT, ir.DataType.INT64]
    assert model.graph.outputs[-1] is best.outputs[1]
    assert operand(best, 0).dtype == FLOAT
    assert operand(best, 1) is count


def test_a_converted_weight_is_written_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).standard_normal((7, 11)).astype(np.float32)
    monkeypatch.setattr(stored_weights, "_CHUNK", 10)
    for dtype in (HALF, BRAIN):
        converted = Halved(ir.tensor(values, name="w"), dtype)
        file = io.BytesIO()
        converted.tofile(file)
        wanted = values.astype(STORED[dtype])
        assert file.getvalue() == wanted.tobytes() == converted.tobytes()
        np.testing.assert_array_equal(converted.numpy(), wanted)


def test_a_converted_weight_says_what_it_is() -> None:
    converted = Halved(ir.tensor(np.ones((2, 3), np.float32), name="w"), HALF)
    assert "w" in repr(converted)
    assert "FLOAT16" in repr(converted)


def test_a_weight_beyond_float16_is_refused() -> None:
    values = ir.tensor(np.array([1, 70_000], np.float32), name="w")
    assert Halved(values, BRAIN).numpy().tolist() == [1, 70_144]
    with pytest.raises(OptionError, match="w holds 70000, float16 does not reach"):
        Halved(values, HALF).numpy()


def test_no_other_dtype_is_half_precision(shapes_bundle: Path) -> None:
    with pytest.raises(AssertionError, match="not half precision"):
        to_half(load(shapes_bundle)["projector"], ir.DataType.INT8)


def test_the_projector_alone_runs_in_float16(shapes_bundle: Path, tmp_path: Path) -> None:
    exact, rounded = load(shapes_bundle)["projector"], load(shapes_bundle)["projector"]
    to_half(rounded, HALF)
    hidden = np.random.default_rng(0).standard_normal((1, 64, 192)).astype(np.float32)
    feeds = {"last_hidden_state": hidden}
    wanted = run(open_graph(exact, tmp_path / "exact.onnx"), feeds)["image_features"]
    found = run(open_graph(rounded, tmp_path / "half.onnx"), feeds)["image_features"]
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, wanted, atol=2e-2)
