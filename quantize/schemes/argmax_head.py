"""Lets a graph choose the next token where it runs, and builds the graphs that read a row there.

On a GPU all logits would otherwise be copied to the host for each token: a megabyte a slot. Rows
are searched in two stages, blocks and then their winners, so that all of a GPU's cores work on
one row. Ids from `<image>` on were never trained to be an answer and take no part.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from paligemma_edge.quantize.graphs.nodes import Nodes
from paligemma_edge.runtime import contract

_MOST_BLOCKS = 512
_LEAST = np.array(np.finfo(np.float32).min, np.float32)
_OPSETS = {"": 23}
_IR_VERSION = 10


def add_argmax_head(model: ir.Model, image_id: int) -> None:
    """Give a graph with logits [batch, 1, vocab] the outputs contract.NEXT_TOKEN and its score."""
    logits = next(value for value in model.graph.outputs if value.name == contract.LOGITS)
    nodes, blocks = Nodes(model, "argmax"), _blocks(image_id)
    rows = _answer_logits(nodes, logits, image_id, blocks)  # [batch, blocks, columns]
    columns = _argmax(nodes, rows, axis=2)  # [batch, blocks, 1]
    largest = nodes.add("GatherElements", rows, columns, axis=2)
    block = _argmax(nodes, largest, axis=1)  # [batch, 1, 1]
    peak = nodes.add("GatherElements", largest, block, axis=1)
    column = nodes.add("GatherElements", columns, block, axis=1)
    width = nodes.constant("argmax.width", np.array(image_id // blocks))
    token = nodes.add("Add", nodes.add("Mul", block, width), column)
    # A block of logits that are all minus infinity takes no part, and is not NaN.
    finite = nodes.add("Max", largest, nodes.constant("argmax.least", _LEAST))
    shares = _sum(nodes, nodes.add("Exp", nodes.add("Sub", rows, finite)), axis=2)
    scales = nodes.add("Exp", nodes.add("Sub", finite, peak))
    total = _sum(nodes, nodes.add("Mul", shares, scales), axis=1)
    log_prob = nodes.add("Neg", nodes.add("Log", total))  # of the peak: exp(0) of the total
    _output(nodes, token, contract.NEXT_TOKEN)
    _output(nodes, log_prob, contract.NEXT_LOG_PROB)
    _set_types(nodes)
    nodes.append()


def logit_graphs(vocab: int, image_id: int) -> dict[str, ir.Model]:
    """The graphs of contract.PICK and contract.SHORTLIST, for one row [1, 1, vocab]."""
    return {
        contract.PICK: _pick_graph(vocab),
        contract.SHORTLIST: _shortlist_graph(vocab, image_id),
    }


def _pick_graph(vocab: int) -> ir.Model:
    logits = ir.val(contract.LOGITS, dtype=ir.DataType.FLOAT, shape=[1, 1, vocab])
    tokens = ir.val(contract.TOKENS, dtype=ir.DataType.INT64, shape=["tokens"])
    nodes = Nodes(_empty(contract.PICK, [logits, tokens]), contract.PICK)
    row = nodes.add("Reshape", logits, nodes.constant("row", np.array([vocab])))
    picked = nodes.add("Gather", row, tokens, axis=0)
    return _finished(nodes, {contract.PICKED: picked}, "tokens")


def _shortlist_graph(vocab: int, image_id: int) -> ir.Model:
    count = min(contract.SHORTLISTED, image_id)
    logits = ir.val(contract.LOGITS, dtype=ir.DataType.FLOAT, shape=[1, 1, vocab])
    nodes = Nodes(_empty(contract.SHORTLIST, [logits]), contract.SHORTLIST)
    rows = _answer_logits(nodes, logits, image_id, blocks=1)
    row = nodes.add("Reshape", rows, nodes.constant("row", np.array([image_id])))
    wanted = nodes.constant("count", np.array([count]))
    top, ids = nodes.add_many("TopK", row, wanted, outputs=2)
    return _finished(nodes, {contract.TOP_LOGITS: top, contract.TOP_TOKENS: ids}, count)


def _blocks(count: int) -> int:
    """The largest number of blocks of equal size, up to _MOST_BLOCKS and the size of a block."""
    most = min(_MOST_BLOCKS, math.isqrt(count))
    return next(blocks for blocks in range(most, 0, -1) if count % blocks == 0)


def _empty(name: str, inputs: list[ir.Value]) -> ir.Model:
    graph = ir.Graph(inputs, [], nodes=[], opset_imports=_OPSETS, name=name)
    return ir.Model(graph, ir_version=_IR_VERSION)


def _finished(nodes: Nodes, outputs: dict[str, ir.Value], size: int | str) -> ir.Model:
    for name, value in outputs.items():
        value.name, value.shape = name, ir.Shape([size])
        nodes.model.graph.outputs.append(value)
    _set_types(nodes)
    nodes.append()
    return nodes.model


def _set_types(nodes: Nodes) -> None:
    """The dtype of each result: that of the first operand, or int64 where it is an index."""
    for node in nodes.tape.nodes:
        for place, output in enumerate(node.outputs):
            index = node.op_type == "ArgMax" or (node.op_type == "TopK" and place == 1)
            first = node.inputs[0]
            assert first is not None
            output.type = ir.TensorType(ir.DataType.INT64) if index else first.type


def _answer_logits(nodes: Nodes, logits: ir.Value, image_id: int, blocks: int) -> ir.Value:
    """[batch, 1, vocab] → those that may be an answer, [batch, blocks, image_id / blocks]."""
    start, end, axis = (
        nodes.constant(f"answer.{name}", np.array([value]))
        for name, value in (("start", 0), ("end", image_id), ("axis", 2))
    )
    answer = nodes.add("Slice", logits, start, end, axis)
    shape = np.array([0, blocks, image_id // blocks])
    return nodes.add("Reshape", answer, nodes.constant("answer.blocks", shape))


def _argmax(nodes: Nodes, values: ir.Value, axis: int) -> ir.Value:
    return nodes.add("ArgMax", values, axis=axis, keepdims=1)


def _sum(nodes: Nodes, values: ir.Value, axis: int) -> ir.Value:
    axes = nodes.constant(f"argmax.axes.{axis}", np.array([axis]))
    return nodes.add("ReduceSum", values, axes, keepdims=1)


def _output(nodes: Nodes, value: ir.Value, name: str) -> None:
    """[batch, 1, 1] → an output [batch, 1]."""
    output = nodes.add("Squeeze", value, nodes.constant("argmax.last", np.array([2])))
    output.name, output.shape = name, ir.Shape(["batch", 1])
    nodes.model.graph.outputs.append(output)
