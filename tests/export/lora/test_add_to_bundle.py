"""What an added adapter puts into a bundle, and what is removed with it."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from paligemma_edge.export.exporter import export
from paligemma_edge.export.lora.add_to_bundle import add_adapter, remove_adapter
from paligemma_edge.quantize.fidelity.questions import sample_questions
from paligemma_edge.quantize.quantizer import QuantizeOptions, quantize
from paligemma_edge.quantize.recipes.recipe import Assignment, Recipe, Scheme, load_recipe
from paligemma_edge.quantize.schemes.cuda_check import missing_kernels
from paligemma_edge.runtime import contract
from paligemma_edge.runtime.bundle.bundle import Bundle
from paligemma_edge.runtime.errors import OptionError
from paligemma_edge.runtime.manifest import SCHEMA_VERSION
from tests.helpers import adapters as peft
from tests.helpers.lora_graphs import distance, inputs, logits, open_lora_graph, original
from tests.helpers.lora_models import DECODER, Model, check_whole, contents

CLOSE = 1e-5  # of the largest logit


def graphs_of(path: Path, variant: str = "cpu-fp32") -> list[str]:
    lora = Bundle.open(path).manifest.lora_graphs.get(variant)
    return [] if lora is None else list(lora.graphs)


def test_the_manifest_of_a_bundle_with_an_adapter(model: Model) -> None:
    manifest = check_whole(model.bundle).manifest
    info = manifest.adapters["one"]
    assert (info.source, info.rank) == ("lora", 7)
    assert info.graphs == ("vision_encoder", "projector", "prefill", "decoder")
    assert list(info.files) == list(manifest.variants)
    assert set(info.files.values()) <= set(manifest.files)
    assert manifest.schema_version == SCHEMA_VERSION
    for name, variant in manifest.variants.items():
        wanted = {graph for graph in variant.graphs if graph in info.graphs}
        assert set(manifest.lora_graphs[name].graphs) == wanted
        assert set(manifest.lora_graphs[name].files) == set(
            manifest.lora_graphs[name].graphs.values()
        )


def test_the_arrays_of_an_adapters_file(model: Model) -> None:
    """The inputs of all graphs, no more and no less, in the dtype that a variant computes in."""
    manifest = Bundle.open(model.bundle).manifest
    dtypes = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}
    for name, variant in manifest.variants.items():
        arrays = inputs(model.bundle, name, "one")
        declared: dict[str, onnx.ValueInfoProto] = {}
        for file in manifest.lora_graphs[name].graphs.values():
            proto = onnx.load(model.bundle / file, load_external_data=False)
            declared |= {v.name: v for v in proto.graph.input if contract.LORA in v.name}
        assert set(arrays) == set(declared)
        assert {array.dtype for array in arrays.values()} == {
            np.dtype(dtypes[variant.compute_dtype])
        }
        for key, array in arrays.items():
            dims = declared[key].type.tensor_type.shape.dim
            layer, rank = key.rpartition(contract.LORA)[0], {d.dim_param for d in dims} - {""}
            assert rank == {f"{layer}.rank"}
            fixed = [d.dim_value or None for d in dims]
            assert [n for n, size in zip(array.shape, fixed, strict=True) if size] == [
                size for size in fixed if size
            ]
    qkv = inputs(model.bundle, "cpu-fp32", "one")["decoder.layers.0.qkv_proj.lora_B"]
    assert qkv.shape == (4 + 4 + 3, 32 + 16 + 16)
    rows = [slice(0, 4), slice(4, 8), slice(8, 11)]
    columns = [slice(0, 32), slice(32, 48), slice(48, 64)]
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            assert np.any(qkv[row, column]) == (i == j)


def test_half_precision_arrays_hold_the_same_values(model: Model) -> None:
    exact = inputs(model.bundle, "cpu-fp32", "one")
    for variant, bits in (("cuda-fp16", 11), ("cuda-bf16", 8)):
        for name, array in inputs(model.bundle, variant, "one").items():
            words = array.view(ml_dtypes.bfloat16) if bits == 8 else array
            np.testing.assert_allclose(
                words.astype(np.float32), exact[name], rtol=2.0**-bits, atol=1e-6
            )


@pytest.mark.parametrize("variant", ["cuda-fp16", "cuda-bf16", "cuda-int4", "cuda-int8"])
def test_lora_graphs_run_on_cuda_only(variant: str, model: Model) -> None:
    manifest = Bundle.open(model.bundle).manifest
    dtype = ir.DataType.BFLOAT16 if variant == "cuda-bf16" else ir.DataType.FLOAT16
    for graph, file in manifest.lora_graphs[variant].graphs.items():
        assert missing_kernels(graph, ir.load(model.bundle / file), dtype) == []


def test_no_weight_is_copied(model: Model) -> None:
    manifest = Bundle.open(model.bundle).manifest
    for name, lora in manifest.lora_graphs.items():
        for graph, file in lora.graphs.items():
            ours, theirs = (
                onnx.load(model.bundle / path, load_external_data=False).graph.initializer
                for path in (file, manifest.variants[name].graphs[graph])
            )
            assert list(ours) == list(theirs)
            assert manifest.files[file].bytes < 250_000
    file = manifest.lora_graphs["cpu-fp32"].graphs["decoder"]
    open_lora_graph(model.bundle / file, model.bundle / "cpu-fp32")


def test_only_graphs_that_an_adapter_changes_are_made(small: Model, tmp_path: Path) -> None:
    text = peft.train(small.base, tmp_path / "text", target_modules=DECODER)
    sight = peft.train(small.base, tmp_path / "sight", target_modules=["fc1"])
    add_adapter(small.bundle, text, "text")
    assert graphs_of(small.bundle) == ["decoder"]
    add_adapter(small.bundle, sight, "sight")
    assert graphs_of(small.bundle) == ["vision_encoder", "decoder"]
    adapters = check_whole(small.bundle).manifest.adapters
    assert adapters["text"].graphs == ("decoder",)
    assert adapters["sight"].graphs == ("vision_encoder",)
    remove_adapter(small.bundle, "text")
    assert graphs_of(small.bundle) == ["vision_encoder"]
    check_whole(small.bundle)


def test_removing_an_adapter_leaves_the_others(small: Model, tmp_path: Path) -> None:
    before = contents(small.bundle)
    other = peft.train(small.base, tmp_path / "other", target_modules="all-linear")
    add_adapter(small.bundle, small.adapter, "one")
    alone = contents(small.bundle)
    add_adapter(small.bundle, other, "two")
    remove_adapter(small.bundle, "two")
    assert contents(small.bundle) == alone
    remove_adapter(small.bundle, "one")
    assert contents(small.bundle) == before
    check_whole(small.bundle)


def test_overwrite_replaces_an_adapter(small: Model, tmp_path: Path) -> None:
    add_adapter(small.bundle, small.adapter, "one")
    before = contents(small.bundle)
    text = peft.train(small.base, tmp_path / "text", target_modules=DECODER)
    with pytest.raises(OptionError, match="already has an adapter one; give --overwrite"):
        add_adapter(small.bundle, text, "one")
    assert contents(small.bundle) == before
    add_adapter(small.bundle, text, "one", overwrite=True)
    assert check_whole(small.bundle).manifest.adapters["one"].graphs == ("decoder",)
    assert graphs_of(small.bundle) == ["decoder"]
    given = inputs(small.bundle, "cpu-fp32", "one")
    actual = logits(small.bundle, "cpu-fp32", small.seen, given)
    assert distance(actual, original(small.base, small.seen, text)) < CLOSE


def test_an_adapter_is_added_to_the_named_variants(model: Model, tmp_path: Path) -> None:
    path = Path(shutil.copytree(model.bundle, tmp_path / "copy.bundle"))
    remove_adapter(path, "one")
    assert check_whole(path).manifest.lora_graphs == {}
    add_adapter(path, model.adapter, "one", variants=["cpu-int8", "cuda-fp16", "cpu-int8"])
    manifest = check_whole(path).manifest
    assert list(manifest.adapters["one"].files) == ["cpu-int8", "cuda-fp16"]
    assert list(manifest.lora_graphs) == ["cpu-int8", "cuda-fp16"]
    assert manifest.adapters["one"].graphs == ("vision_encoder", "projector", "decoder")


def test_adding_again_repairs_damaged_files(small: Model) -> None:
    add_adapter(small.bundle, small.adapter, "one")
    before = contents(small.bundle)
    for name in ("lora_graphs/cpu-fp32/decoder.onnx", "adapters/one/cpu-fp32.npz"):
        (small.bundle / name).write_bytes(b"damage")
    add_adapter(small.bundle, small.adapter, "one", overwrite=True)
    assert contents(small.bundle) == before


def test_a_bundle_without_a_lossless_variant(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "one.bundle"
    export(model.base, path, variants=[load_recipe("cpu-int8")])
    add_adapter(path, model.adapter, "one")
    assert list(check_whole(path).manifest.adapters["one"].files) == ["cpu-int8"]


# --- variants that are added and replaced


def test_replacing_a_variant_removes_its_adapters_files(small: Model, tmp_path: Path) -> None:
    plain = QuantizeOptions(calibrate=False, report=False)
    int8 = load_recipe("cpu-int8")
    quantize(small.bundle, [int8], plain)
    add_adapter(small.bundle, small.adapter, "both")
    add_adapter(small.bundle, small.adapter, "rounded", variants=["cpu-int8"])
    kept = {k: v for k, v in contents(small.bundle).items() if "int8" not in k}
    notes: list[str] = []
    quantize(small.bundle, [int8], dataclasses.replace(plain, overwrite=True), note=notes.append)
    manifest = check_whole(small.bundle).manifest
    assert {k: list(v.files) for k, v in manifest.adapters.items()} == {"both": ["cpu-fp32"]}
    assert list(manifest.lora_graphs) == ["cpu-fp32"]
    after = contents(small.bundle)
    assert {k: v for k, v in after.items() if "int8" not in k} == kept | {
        "manifest.json": after["manifest.json"]
    }
    assert [line for line in notes if "adapters" in line] == [
        "cpu-int8: adapters of the bundle are not made for it, add them again with "
        "`paligemma-edge adapter --overwrite`: both, rounded"
    ]
    add_adapter(small.bundle, small.adapter, "both", overwrite=True)
    assert list(check_whole(small.bundle).manifest.adapters["both"].files) == [
        "cpu-fp32",
        "cpu-int8",
    ]


def test_a_search_for_a_small_variant_ignores_adapters(small: Model) -> None:
    options = QuantizeOptions(
        questions=tuple(sample_questions()[:1]),
        min_agreement=0.01,
        report=False,
        max_new_tokens=1,
        overwrite=True,
    )
    recipe = Recipe(
        about="a test",
        weights="int8",
        fold=False,
        schemes={"float": Scheme(kind="float")},
        layers=(Assignment(match="decoder.*", scheme="float"),),
        name="cpu-mine",
    )
    quantize(small.bundle, [recipe], QuantizeOptions(calibrate=False, report=False))
    add_adapter(small.bundle, small.adapter, "one")
    quantize(small.bundle, [recipe], options)
    assert list(check_whole(small.bundle).manifest.adapters["one"].files) == ["cpu-fp32"]
