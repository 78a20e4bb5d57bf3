"""The best logits of a rounded head, computed again from the embedding table itself.

The head is the largest weight that a step reads, and small differences between its logits decide
where a box ends. So its rounded product only finds the candidates; the table, which is on disk
for the embedding anyway, gives their exact rows: some hundred kilobytes a step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from paligemma_edge.quantize.graphs.derived_weights import Float
from paligemma_edge.quantize.graphs.linear import EMBEDDING, WEIGHT, tensor_of
from paligemma_edge.quantize.graphs.nodes import Nodes
from paligemma_edge.quantize.transforms.rotate import add_rotation
from paligemma_edge.quantize.transforms.rotation import Rotation


@dataclass(frozen=True)
class HeadInput:
    """What turns the head's input back into what the table's rows are multiplied with."""

    gain: Float  # what the last norm's gain was over what it is now, [hidden]
    rotation: Rotation | None


def refine_head(
    model: ir.Model, normed: ir.Value, logits_name: str, came_from: HeadInput, candidates: int
) -> None:
    """Replace the `candidates` largest of the head's products [batch, vocab] by exact ones.

    `normed` is the head's input [batch, hidden]; `logits_name` is what its products are called,
    whatever the head's scheme.
    """
    head = _producer(model, logits_name)
    logits = next(value for value in head.outputs if value.name == logits_name)
    users = [(use.node, use.idx) for use in logits.uses()]
    nodes = Nodes(model, "refine")
    column = _original_input(nodes, normed, came_from)  # [batch, hidden, 1]
    count = nodes.constant("refine.count", np.array([candidates]))
    _, ids = nodes.add_many("TopK", logits, count, outputs=2, sorted=0)
    rows = _table_rows(nodes, ids)  # [batch, candidates, hidden]
    last = nodes.constant("refine.last", np.array([-1]))
    exact = nodes.add("Squeeze", nodes.add("MatMul", rows, column), last)
    refined = nodes.add("ScatterElements", logits, ids, exact, axis=1)
    refined.type, refined.shape = logits.type, logits.shape
    nodes.insert_after(head)
    for user, index in users:
        user.replace_input_with(index, refined)


def _producer(model: ir.Model, name: str) -> ir.Node:
    return next(node for node in model.graph if name in [value.name for value in node.outputs])


def _original_input(nodes: Nodes, normed: ir.Value, came_from: HeadInput) -> ir.Value:
    """The head's input [batch, hidden] as it was before any pass, as [batch, hidden, 1]."""
    x = nodes.add("Unsqueeze", normed, nodes.constant("refine.second", np.array([1])))
    if came_from.rotation is not None:
        x = add_rotation(nodes, x, came_from.rotation, back=True)
    x = nodes.add("Mul", x, nodes.constant("refine.gain", came_from.gain))
    return nodes.add("Transpose", x, perm=[0, 2, 1])


def _table_rows(nodes: Nodes, ids: ir.Value) -> ir.Value:
    table = nodes.model.graph.initializers[EMBEDDING + WEIGHT]
    rows = nodes.add("Gather", table, ids, axis=0)
    if tensor_of(table).dtype == ir.DataType.FLOAT:
        return rows
    return nodes.add("Cast", rows, to=int(ir.DataType.FLOAT))
