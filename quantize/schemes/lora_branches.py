"""A variant's graph with a place for an adapter at each layer: `y + (x @ A + shift) @ B`.

A, B and the shift are inputs of the graph, see contract.adapter_inputs. Nothing else changes, and
no weight is copied: the graph names the file that the variant's own graph reads. A bias is added
afterwards, as ONNX Runtime fuses it with what follows.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from paligemma_edge.quantize.graphs.nodes import Nodes
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
        _add_branch(model, product, dtype, shifted=layer_of(product) in shifted)


def _add_branch(model: ir.Model, product: Product, dtype: ir.DataType, *, shifted: bool) -> None:
    nodes = Nodes(model, f"{product.layer}.lora")
    a_name, b_name, shift_name = contract.adapter_inputs(layer_of(product))
    rank = f"{layer_of(product)}.rank"

    def operand(name: str, shape: list[int | str]) -> ir.Value:
        """An input of the graph, in the dtype of the layer."""
        value = ir.val(name, dtype=dtype, shape=shape)
        model.graph.inputs.append(value)
        return value if dtype == product.dtype else nodes.add("Cast", value, to=int(product.dtype))

    a = operand(a_name, [product.in_features, rank])
    b = operand(b_name, [rank, product.out_features])
    inner = nodes.add("MatMul", product.x, a)
    if shifted:
        inner = nodes.add("Add", inner, operand(shift_name, [rank]))
    _add_to_output(nodes, product, nodes.add("MatMul", inner, b))


def _add_to_output(nodes: Nodes, product: Product, added: ir.Value) -> None:
    """Let all that read y read the sum."""
    y, producer = product.y, product.y.producer()
    assert producer is not None
    assert not y.is_graph_output(), "a bias or the residual stream comes after a layer"
    total = nodes.add("Add", y, added)
    for node in nodes.tape.nodes:
        node.outputs[0].type = ir.TensorType(product.dtype)
    total.shape = y.shape
    y.replace_all_uses_with(total)
    nodes.tape.nodes[-1].replace_input_with(0, y)
    nodes.insert_after(producer)
