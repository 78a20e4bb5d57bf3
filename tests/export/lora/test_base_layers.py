"""Layers and shapes read from a bundle's graphs equal the checkpoint's, whatever the variant."""

from __future__ import annotations

import numpy as np

from paligemma_edge.export.checkpoint.open import open_checkpoint
from paligemma_edge.export.checkpoint.tensor_shapes import expected_shapes
from paligemma_edge.export.lora.adapter import read_adapter
from paligemma_edge.export.lora.base_layers import Base, read_base
from paligemma_edge.export.lora.graph_inputs import branches_of
from paligemma_edge.export.lora.variant_graphs import LoraVariant
from paligemma_edge.runtime.bundle.bundle import Bundle
from tests.helpers.lora_models import Model


def bases(model: Model) -> dict[str, Base]:
    bundle = Bundle.open(model.bundle)
    return {
        name: read_base(LoraVariant.read(bundle, name).graphs, bundle.manifest.model)
        for name in bundle.manifest.variants
    }


def check_shapes(model: Model) -> None:
    variants, wanted = bases(model), expected_shapes(open_checkpoint(model.base).config)
    assert len(variants) >= 3
    for name, base in variants.items():
        assert base.shapes == wanted, name


def test_every_variant_has_the_shapes_of_the_checkpoint(model: Model) -> None:
    check_shapes(model)


def test_every_variant_of_a_paligemma2_has_the_shapes_of_the_checkpoint(second: Model) -> None:
    check_shapes(second)


def test_joined_layers_are_listed_one_by_one(model: Model) -> None:
    for base in bases(model).values():
        layer = base.layers["decoder.layers.0.qkv_proj"]
        sizes = zip("qkv", (32, 16, 16), strict=True)
        rows = {f"decoder.layers.0.{part}_proj": size for part, size in sizes}
        assert (layer.in_features, layer.rows, layer.out_features) == (64, rows, 64)
        assert list(layer.rows) == list(rows)
        assert base.layers["vision.layers.1.qkv_proj"].rows == {
            f"vision.layers.1.{part}_proj": 32 for part in "qkv"
        }
        assert base.layers["projector"].rows == {"projector": 64}
        assert not [name for name in base.layers if "lm_head" in name or "embed" in name]


def test_branches_are_what_the_adapter_adds_to_each_layer(model: Model) -> None:
    base = bases(model)["cpu-int8"]
    adapter = read_adapter(model.adapter, base.shapes)
    branches = branches_of(adapter, base)
    assert list(branches) == list(base.layers)
    for name, layer in base.layers.items():
        added, start = branches[name].b @ branches[name].a, 0
        for part, rows in layer.rows.items():
            change = adapter.layers[part]
            wanted = change.scale * (change.b.numpy() @ change.a.numpy())
            np.testing.assert_allclose(added[start : start + rows], wanted, rtol=0, atol=1e-6)
            start += rows
        assert start == len(added)
