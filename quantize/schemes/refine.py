"""The best logits of a rounded head, computed again from the embedding table itself.

The head is the largest weight that a step reads, and small differences between its logits decide
where a box ends. So its rounded product only finds the candidates; the table, which lies on disk
for the embedding anyway, gives their exact rows: some hundred kilobytes a step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from paligemma_edge.quantize.graphs.constants import add_constant
from paligemma_edge.quantize.graphs.derived import Float
from paligemma_edge.quantize.graphs.linear import EMBEDDING, WEIGHT, tensor_of
from paligemma_edge.quantize.transforms.rotate import rotation_nodes
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
    graph = _Insertion(model, head)
    logits = next(value for value in head.outputs if value.name == logits_name)
    users = [(use.node, use.idx) for use in logits.uses()]
    column = graph.column(normed, came_from)  # [batch, hidden, 1]
    count = graph.constant("count", np.array([candidates]))
    top = ir.node("TopK", [logits, count], attributes={"sorted": 0}, num_outputs=2)
    graph.put(top)
    ids = top.outputs[1]
    rows = graph.table_rows(ids)  # [batch, candidates, hidden]
    exact = graph.op("Squeeze", graph.op("MatMul", rows, column), graph.constant("last", _LAST))
    refined = graph.op("ScatterElements", logits, ids, exact, axis=1)
    refined.type, refined.shape = logits.type, logits.shape
    graph.insert_after()
    for user, index in users:
        user.replace_input_with(index, refined)


def _producer(model: ir.Model, name: str) -> ir.Node:
    return next(node for node in model.graph if name in [value.name for value in node.outputs])


_LAST = np.array([-1])


class _Insertion:
    """Nodes that are to stand behind the head."""

    def __init__(self, model: ir.Model, head: ir.Node) -> None:
        self.model, self.head = model, head
        self.nodes: list[ir.Node] = []

    def put(self, *nodes: ir.Node) -> None:
        for node in nodes:
            for output in node.outputs:
                if output.name is None:
                    output.name = f"refine.{len(self.nodes)}.{output.index()}"
            self.nodes.append(node)

    def op(self, kind: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        self.put(ir.node(kind, inputs, attributes=attributes))
        return self.nodes[-1].outputs[0]

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        return add_constant(self.model, f"refine.{name}", array)

    def column(self, normed: ir.Value, came_from: HeadInput) -> ir.Value:
        """The head's input [batch, hidden] as it was before any pass, as [batch, hidden, 1]."""
        x = self.op("Unsqueeze", normed, self.constant("second", np.array([1])))
        if came_from.rotation is not None:
            nodes = rotation_nodes(self.model, x, came_from.rotation, back=True)
            self.put(*nodes)
            x = nodes[-1].outputs[0]
        x = self.op("Mul", x, self.constant("gain", came_from.gain))
        self.put(ir.node("Transpose", [x], attributes={"perm": [0, 2, 1]}))
        return self.nodes[-1].outputs[0]

    def table_rows(self, ids: ir.Value) -> ir.Value:
        table = self.model.graph.initializers[EMBEDDING + WEIGHT]
        rows = self.op("Gather", table, ids, axis=0)
        if tensor_of(table).dtype == ir.DataType.FLOAT:
            return rows
        return self.op("Cast", rows, to=int(ir.DataType.FLOAT))

    def insert_after(self) -> None:
        self.model.graph.insert_after(self.head, self.nodes)
