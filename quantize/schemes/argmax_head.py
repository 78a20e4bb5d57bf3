"""Lets a graph choose the next token where it runs, and makes the graphs that look at a row there.

On a GPU all logits would otherwise be copied to the host for each token: a megabyte a slot. Rows
are searched in two stages, blocks and then their winners, so that a GPU's many processors take
part in one row. Ids from `<image>` on were never trained to be an answer and take no part.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from paligemma_edge.quantize.graphs.constants import add_constant
from paligemma_edge.runtime import contract

_MOST_BLOCKS = 512
_LEAST = np.array(np.finfo(np.float32).min, np.float32)
_OPSETS = {"": 23}
_IR_VERSION = 10


def add_argmax_head(model: ir.Model, image_id: int) -> None:
    """Give a graph with logits [batch, 1, vocab] the outputs of contract.NEXT_TOKEN and its kin."""
    logits = next(value for value in model.graph.outputs if value.name == contract.LOGITS)
    nodes = _Nodes(model, "choice")
    rows = nodes.answer_logits(
        logits, image_id, blocks=_blocks(image_id)
    )  # [batch, blocks, columns]
    columns = nodes.argmax(rows, axis=2)  # [batch, blocks, 1]
    largest = nodes.op("GatherElements", rows, columns, axis=2)
    block = nodes.argmax(largest, axis=1)  # [batch, 1, 1]
    peak = nodes.op("GatherElements", largest, block, axis=1)
    column = nodes.op("GatherElements", columns, block, axis=1)
    width = nodes.constant("width", np.array(image_id // _blocks(image_id)))
    token = nodes.op("Add", nodes.op("Mul", block, width), column)
    # A block of logits that are all minus infinity takes no part, and is no NaN.
    finite = nodes.op("Max", largest, nodes.constant("least", _LEAST))
    shares = nodes.sum(nodes.op("Exp", nodes.op("Sub", rows, finite)), axis=2)
    scales = nodes.op("Exp", nodes.op("Sub", finite, peak))
    total = nodes.sum(nodes.op("Mul", shares, scales), axis=1)
    log_prob = nodes.op("Neg", nodes.op("Log", total))  # of the peak, which is exp(0) of the total
    nodes.output(token, contract.NEXT_TOKEN)
    nodes.output(log_prob, contract.NEXT_LOG_PROB)
    model.graph.extend(nodes.nodes)


def logit_graphs(vocab: int, image_id: int) -> dict[str, ir.Model]:
    """The graphs of contract.PICK and contract.SHORTLIST, for one row [1, 1, vocab]."""
    return {
        contract.PICK: _pick_graph(vocab),
        contract.SHORTLIST: _shortlist_graph(vocab, image_id),
    }


def _pick_graph(vocab: int) -> ir.Model:
    logits = ir.val(contract.LOGITS, dtype=ir.DataType.FLOAT, shape=[1, 1, vocab])
    tokens = ir.val(contract.TOKENS, dtype=ir.DataType.INT64, shape=["tokens"])
    model = _empty(contract.PICK, [logits, tokens])
    nodes = _Nodes(model, contract.PICK)
    row = nodes.op("Reshape", logits, nodes.constant("row", np.array([vocab])))
    picked = nodes.op("Gather", row, tokens, axis=0)
    return _finished(nodes, {contract.PICKED: picked}, "tokens")


def _shortlist_graph(vocab: int, image_id: int) -> ir.Model:
    count = min(contract.SHORTLISTED, image_id)
    logits = ir.val(contract.LOGITS, dtype=ir.DataType.FLOAT, shape=[1, 1, vocab])
    model = _empty(contract.SHORTLIST, [logits])
    nodes = _Nodes(model, contract.SHORTLIST)
    rows = nodes.answer_logits(logits, image_id, blocks=1)
    row = nodes.op("Reshape", rows, nodes.constant("row", np.array([image_id])))
    top = nodes.put("TopK", row, nodes.constant("count", np.array([count])), outputs=2)
    return _finished(nodes, {contract.TOP_LOGITS: top[0], contract.TOP_TOKENS: top[1]}, count)


def _blocks(count: int) -> int:
    """The largest number of blocks of equal size, up to _MOST_BLOCKS and the size of a block."""
    most = min(_MOST_BLOCKS, math.isqrt(count))
    return next(blocks for blocks in range(most, 0, -1) if count % blocks == 0)


def _empty(name: str, inputs: list[ir.Value]) -> ir.Model:
    graph = ir.Graph(inputs, [], nodes=[], opset_imports=_OPSETS, name=name)
    return ir.Model(graph, ir_version=_IR_VERSION)


def _finished(nodes: _Nodes, outputs: dict[str, ir.Value], size: int | str) -> ir.Model:
    graph = nodes.model.graph
    for name, value in outputs.items():
        value.name, value.shape = name, ir.Shape([size])
        graph.outputs.append(value)
    graph.extend(nodes.nodes)
    return nodes.model


class _Nodes:
    """Nodes that are to be added to a graph, with constants of their own."""

    def __init__(self, model: ir.Model, name: str) -> None:
        self.model, self.name = model, name
        self.nodes: list[ir.Node] = []

    def op(self, kind: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        return self.put(kind, *inputs, **attributes)[0]

    def put(
        self, kind: str, *inputs: ir.Value, outputs: int = 1, **attributes: int
    ) -> list[ir.Value]:
        node = ir.node(kind, inputs, attributes=attributes, num_outputs=outputs)
        for place, output in enumerate(node.outputs):
            output.name = f"{self.name}.{len(self.nodes)}.{place}"
            indices = kind == "ArgMax" or (kind == "TopK" and place == 1)
            output.type = ir.TensorType(ir.DataType.INT64) if indices else inputs[0].type
        self.nodes.append(node)
        return list(node.outputs)

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        return add_constant(self.model, f"{self.name}.{name}", array)

    def answer_logits(self, logits: ir.Value, image_id: int, blocks: int) -> ir.Value:
        """[batch, 1, vocab] → those that may be an answer, [batch, blocks, image_id / blocks]."""
        ends = [self.constant(n, np.array([v])) for n, v in (("start", 0), ("end", image_id))]
        spoken = self.op("Slice", logits, *ends, self.constant("axis", np.array([2])))
        shape = np.array([0, blocks, image_id // blocks])
        return self.op("Reshape", spoken, self.constant("blocks", shape))

    def argmax(self, values: ir.Value, axis: int) -> ir.Value:
        return self.op("ArgMax", values, axis=axis, keepdims=1)

    def sum(self, values: ir.Value, axis: int) -> ir.Value:
        axes = self.constant(f"axes.{axis}", np.array([axis]))
        return self.op("ReduceSum", values, axes, keepdims=1)

    def output(self, value: ir.Value, name: str) -> None:
        """[batch, 1, 1] → an output [batch, 1]."""
        found = self.op("Squeeze", value, self.constant("last", np.array([2])))
        found.name, found.shape = name, ir.Shape(["batch", 1])
        self.model.graph.outputs.append(found)
