"""Runs a graph in pieces, so that the weights of one piece alone are in memory.

Every question passes a piece before the next piece is read. Of a decoder it runs the prompt, and
then the answer as one causal chunk over the prompt's keys and values, layer by layer. Knows
graphs and tensors. Knows nothing of what is observed, nor why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import helper

from paligemma_edge.quantize.graphs.derived_weights import matrix_rows
from paligemma_edge.quantize.graphs.linear import initializer, tensor_of
from paligemma_edge.quantize.graphs.prefill import WINDOW
from paligemma_edge.runtime.device.ort import ort
from paligemma_edge.runtime.system.linux import usable_cores

Array: TypeAlias = NDArray[Any]
Observe: TypeAlias = Callable[[int, str, Array], None]  # number of the run, value's name, value

PIECE_BYTES = 600 << 20
_MAX_GATHERED = 64 << 20  # a larger table is not given to ONNX Runtime: rows are looked up


@dataclass
class Run:
    """One pass through the graph: its inputs, then all values that later pieces need.

    `takes` names inputs that are outputs of an earlier run, such as past keys and values.
    """

    values: dict[str, Array]
    causal: bool = False
    after: Run | None = None
    takes: Mapping[str, str] = field(default_factory=dict)


def stream(
    model: ir.Model,
    runs: Sequence[Run],
    wanted: Iterable[str],
    observe: Observe,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Pass every run through the nodes that the wanted values need; `observe` gets each of them."""
    names = set(wanted)
    pieces = _pieces(model, names)
    for number, nodes in enumerate(pieces):
        later = {name for piece in pieces[number + 1 :] for node in piece for name in _reads(node)}
        _run_piece(nodes, runs, names, later, observe)
        if progress is not None:
            progress(number + 1, len(pieces))


def _pieces(model: ir.Model, wanted: set[str]) -> list[list[ir.Node]]:
    """The nodes that are needed, in order, cut where the weights of a piece grow too large."""
    pieces: list[list[ir.Node]] = [[]]
    size = 0
    for node in _needed(model, wanted):
        weight = sum(4 * tensor.size for tensor in _weights([node]).values())
        if pieces[-1] and size + weight > PIECE_BYTES:
            pieces.append([])
            size = 0
        pieces[-1].append(node)
        size += weight
    return pieces


def _needed(model: ir.Model, wanted: set[str]) -> list[ir.Node]:
    needed, nodes = set(wanted), []
    for node in reversed(list(model.graph)):
        if needed & {output.name for output in node.outputs}:
            needed |= _reads(node)
            nodes.append(node)
    return nodes[::-1]


def _reads(node: ir.Node) -> set[str]:
    return {value.name for value in node.inputs if value is not None and value.name}


def _weights(nodes: Sequence[ir.Node]) -> dict[str, ir.TensorProtocol]:
    read = (value for node in nodes for value in node.inputs if value is not None)
    return {v.name: tensor_of(v) for v in read if v.is_initializer() and v.name}


def _run_piece(
    nodes: Sequence[ir.Node],
    runs: Sequence[Run],
    wanted: set[str],
    later: set[str],
    observe: Observe,
) -> None:
    for table in [node for node in nodes if _looks_up(node)]:
        for run in runs:
            _look_up(table, run)
    computed = [node for node in nodes if not _looks_up(node)]
    if not computed:
        return
    computed_names = {output.name for node in computed for output in node.outputs if output.name}
    presents = {name for run in runs for name in run.takes.values()}
    outputs = sorted(computed_names & (wanted | later | presents))
    sessions: dict[bool, ort.InferenceSession] = {}
    for number, run in enumerate(runs):
        if run.causal not in sessions:
            sessions[run.causal] = _session(computed, run, outputs)
        arrays = sessions[run.causal].run(outputs, _feeds(sessions[run.causal], run))
        for name, array in zip(outputs, arrays, strict=True):
            run.values[name] = array
            if name in wanted:
                observe(number, name, array)
    for run in runs:
        run.values = {k: v for k, v in run.values.items() if k in later or k in presents}


def _feeds(session: ort.InferenceSession, run: Run) -> dict[str, Array]:
    """Inputs of a piece; what a run takes from an earlier one is removed there."""
    feeds = {}
    for value in session.get_inputs():
        if value.name in run.takes and run.after is not None:
            feeds[value.name] = run.after.values.pop(run.takes[value.name])
        else:
            feeds[value.name] = run.values[value.name]
    return feeds


def _session(nodes: Sequence[ir.Node], run: Run, outputs: Sequence[str]) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = usable_cores()
    options.log_severity_level = 4
    model = _proto(nodes, run, outputs)
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _proto(nodes: Sequence[ir.Node], run: Run, outputs: Sequence[str]) -> bytes:
    weights = _weights(nodes)
    computed = {output.name for node in nodes for output in node.outputs}
    read = {name for node in nodes for name in _reads(node)} - computed - set(weights)
    graph = helper.make_graph(
        [_node(node, run.causal) for node in nodes],
        "piece",
        [_declared(name, run) for name in sorted(read)],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [_serialized(name, tensor) for name, tensor in weights.items()],
    )
    opsets = nodes[0].graph.opset_imports if nodes[0].graph is not None else {}
    imports = [helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    proto = helper.make_model(graph, opset_imports=imports, ir_version=10)
    return bytes(proto.SerializeToString())


def _node(node: ir.Node, causal: bool) -> onnx.NodeProto:
    """A prompt attends to all of itself; each token of an answer to those before it."""
    proto = ir.to_proto(node)
    for attribute in proto.attribute:
        if attribute.name == "causal":
            attribute.i = int(causal)
        if attribute.name == WINDOW and not causal:
            attribute.i = -1
    if not causal:
        return proto
    if proto.op_type == "Slice":  # of a prompt only the last token is passed on
        proto.op_type = "Identity"
        del proto.input[1:]
    if proto.op_type == "Squeeze":  # which makes the tokens those of a batch
        proto.op_type = "Flatten"
        del proto.input[1:]
        proto.attribute.append(helper.make_attribute("axis", 2))
    return proto


def _declared(name: str, run: Run) -> onnx.ValueInfoProto:
    """An input of a piece: sizes are left open, for the runs differ in theirs."""
    source = run.after.values[run.takes[name]] if run.after and name in run.takes else None
    array = run.values[name] if source is None else source
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    return helper.make_tensor_value_info(name, kind, [None] * array.ndim)


def _serialized(name: str, tensor: ir.TensorProtocol) -> onnx.TensorProto:
    proto = onnx.TensorProto(name=name, data_type=int(tensor.dtype), raw_data=tensor.tobytes())
    proto.dims.extend(int(size) for size in tensor.shape.numpy())
    return proto


def _looks_up(node: ir.Node) -> bool:
    table = initializer(node.inputs[0]) if node.op_type == "Gather" else None
    return table is not None and tensor_of(table).size * 4 > _MAX_GATHERED


def _look_up(gather: ir.Node, run: Run) -> None:
    """Rows, in float32, of a table that is too large to be held so. [..., width]"""
    table, ids = initializer(gather.inputs[0]), gather.inputs[1]
    assert table is not None and ids is not None and ids.name and gather.outputs[0].name
    tensor, places = tensor_of(table), run.values[ids.name]
    rows = [matrix_rows(tensor, int(i), int(i) + 1, columns_first=False)[0] for i in places.ravel()]
    width = int(tensor.shape.numpy()[1])
    run.values[gather.outputs[0].name] = np.array(rows).reshape(*places.shape, width)
