"""A variant's graph with a place for an adapter at each layer: `y + (x @ A + shift) @ B`.

A, B and the shift are inputs of the graph, see contract.adapter_inputs. Nothing else changes, and
no weight is copied: the graph names the file that the variant's own graph reads. A bias is added
afterwards, as ONNX Runtime fuses it with what follows.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from paligemma_edge.quantize.graphs.prefill import PREFIX
from paligemma_edge.quantize.schemes.products import Product, products
from paligemma_edge.runtime import contract


def layer_of(product: Product) -> str:
    """The layer whose adapter a product takes: what reads a prompt takes that of the decoder."""
    return product.layer.replace(PREFIX, "decoder.", 1) if _is_prefill(product) else product.layer


def _is_prefill(product: Product) -> bool:
    return product.layer.startswith(PREFIX)


def add_branches(model: ir.Model, dtype: ir.DataType, shifted: Collection[str]) -> None:
    """Add a branch to each layer but the head; its inputs are in `dtype`.

    A layer that computes in float32 all the same reads them through casts. `shifted` are the
    layers whose branch has a shift.
    """
    for product in products(model):
        _Branch(model, product, dtype).add(shifted=layer_of(product) in shifted)


class _Branch:
    """The nodes of one branch."""

    def __init__(self, model: ir.Model, product: Product, dtype: ir.DataType) -> None:
        self.graph, self.product, self.dtype = model.graph, product, dtype
        self.names = contract.adapter_inputs(layer_of(product))
        self.nodes: list[ir.Node] = []

    def add(self, *, shifted: bool) -> None:
        rank, product = f"{layer_of(self.product)}.rank", self.product
        a_name, b_name, shift_name = self.names
        a = self._input(a_name, [product.in_features, rank])
        b = self._input(b_name, [rank, product.out_features])
        inner = self._node("MatMul", product.x, a)
        if shifted:
            inner = self._node("Add", inner, self._input(shift_name, [rank]))
        self._join(self._node("MatMul", inner, b))

    def _input(self, name: str, shape: list[int | str]) -> ir.Value:
        """An input of the graph, in the dtype of the layer."""
        value = ir.val(name, dtype=self.dtype, shape=shape)
        self.graph.inputs.append(value)
        if self.dtype == self.product.dtype:
            return value
        return self._node("Cast", value, to=int(self.product.dtype))

    def _node(self, kind: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        node = ir.node(kind, inputs, attributes=attributes)
        output = node.outputs[0]
        output.name = f"{self.product.layer}{contract.LORA}{len(self.nodes)}"
        output.type = ir.TensorType(self.product.dtype)
        self.nodes.append(node)
        return output

    def _join(self, added: ir.Value) -> None:
        """Let all that read y read the sum."""
        y, producer = self.product.y, self.product.y.producer()
        assert producer is not None
        assert not y.is_graph_output(), "a bias or the residual stream comes behind a layer"
        total = self._node("Add", y, added)
        total.shape = y.shape
        y.replace_all_uses_with(total)
        self.nodes[-1].replace_input_with(0, y)
        self.graph.insert_after(producer, self.nodes)
