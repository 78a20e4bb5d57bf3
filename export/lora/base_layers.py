"""The layers of a bundle's graphs, which an adapter is checked against without a checkpoint.

Reads the size of each layer, however it was quantized, and the shapes of all other tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from paligemma_edge.export.checkpoint.tensor_names import EMBEDDING
from paligemma_edge.export.checkpoint.tensor_shapes import Shape
from paligemma_edge.quantize.graphs.linear import WEIGHT, tensor_of
from paligemma_edge.quantize.schemes.half_plan import BIAS
from paligemma_edge.quantize.schemes.products import Product, products
from paligemma_edge.runtime import contract
from paligemma_edge.runtime.manifest import ModelConfig

_QKV = "qkv_proj"
_GAIN = ".gain"  # of an RMSNorm: 1 + the weight


@dataclass(frozen=True)
class BaseLayer:
    """A layer of the graphs; `rows` are those of the checkpoint's layers that it joins, in order.

    Layers have their internal names.
    """

    in_features: int
    rows: Mapping[str, int]

    @property
    def out_features(self) -> int:
        """Rows of all of them."""
        return sum(self.rows.values())


@dataclass(frozen=True)
class Base:
    """The model that an adapter is added to."""

    layers: Mapping[str, BaseLayer]  # by their name in the graphs
    shapes: Mapping[str, Shape]  # of a checkpoint's tensors, by internal name


def read_base(graphs: Mapping[str, ir.Model], config: ModelConfig) -> Base:
    """Read a variant's graphs; their weights are not loaded."""
    names = (contract.VISION_ENCODER, contract.PROJECTOR, contract.DECODER)
    models = [graphs[name] for name in names]
    linear = [product for model in models for product in products(model)]
    layers = {p.layer: BaseLayer(p.in_features, dict(_rows(p, config))) for p in linear}
    shapes: dict[str, Shape] = {EMBEDDING: (config.vocab_size, config.hidden_size)}
    for model in models:
        shapes |= _vectors(model, layers)
    for layer in layers.values():
        shapes |= {f"{name}{WEIGHT}": (n, layer.in_features) for name, n in layer.rows.items()}
    return Base(layers, shapes)


def _rows(product: Product, config: ModelConfig) -> Iterator[tuple[str, int]]:
    """q, k and v are one product; the decoder has fewer keys and values than queries."""
    if not product.layer.endswith(_QKV):
        yield product.layer, product.out_features
        return
    keys = config.num_kv_heads * config.head_dim
    if product.layer.startswith("vision."):
        keys = product.out_features // 3
    for part, rows in (("q", product.out_features - 2 * keys), ("k", keys), ("v", keys)):
        yield product.layer.replace(_QKV, f"{part}_proj"), rows


def _vectors(model: ir.Model, layers: Mapping[str, BaseLayer]) -> Iterator[tuple[str, Shape]]:
    """Biases, norms, and the embeddings of the vision encoder."""
    for name, value in model.graph.initializers.items():
        shape: Shape = tuple(tensor_of(value).shape.numpy())
        in_vision = name.startswith("vision.") and name.endswith((WEIGHT, BIAS))
        if layer := layers.get(name.removesuffix(BIAS)):
            yield from ((f"{part}{BIAS}", (rows,)) for part, rows in layer.rows.items())
        elif name.startswith("decoder.") and name.endswith(_GAIN):
            yield name.removesuffix(_GAIN) + WEIGHT, shape
        elif in_vision and name.removesuffix(WEIGHT) not in layers:
            yield name, shape
