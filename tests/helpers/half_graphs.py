"""The sample model's graphs in half precision, and how they are run without a GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from paligemma_edge.quantize.graphs.graph_file import write_graph
from paligemma_edge.quantize.graphs.prefill import has_windows, whole_prompt
from paligemma_edge.runtime import contract
from paligemma_edge.runtime.device.ort import ort
from paligemma_edge.runtime.manifest import ModelConfig

Array: TypeAlias = NDArray[Any]

GRAPHS = (contract.VISION_ENCODER, contract.PROJECTOR, contract.DECODER)
IDS = (2, 290, 269, 5)  # "caption en" to the sample model
ANSWER = 907  # "a", with which it begins a caption
_FLOAT = ir.DataType.FLOAT
_NUMPY = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def load(bundle: Path) -> dict[str, ir.Model]:
    return {name: ir.load(bundle / "cpu-fp32" / f"{name}.onnx") for name in GRAPHS}


def answers(
    graphs: Mapping[str, ir.Model], config: ModelConfig, pixels: Array, folder: Path
) -> Array:
    """The logits [2, vocab] after a prompt and after one step, through all three graphs.

    Where the decoder has windows, the prompt goes through the copy of it that has none.
    """
    folder.mkdir()
    sessions = {name: open_graph(graphs[name], folder / f"{name}.onnx") for name in GRAPHS}
    decoder = reader = sessions[contract.DECODER]
    if has_windows(graphs[contract.DECODER]):
        reader = open_graph(whole_prompt(graphs[contract.DECODER]), folder / "prefill.onnx")
    hidden = run(sessions[contract.VISION_ENCODER], {contract.PIXEL_VALUES: pixels})
    features = run(sessions[contract.PROJECTOR], hidden)
    length = config.image_tokens + len(IDS)
    row = (1, config.num_kv_heads, length + 1, config.head_dim)
    names = [name for i in range(config.num_layers) for name in contract.past_names(i)]
    presents = [name for i in range(config.num_layers) for name in contract.present_names(i)]
    cache = {name: np.zeros(row, np.float32) for name in names}
    first = run(reader, {**features, **_asked(IDS, length), **cache})
    nothing = {contract.IMAGE_FEATURES: features[contract.IMAGE_FEATURES][:, :0]}
    cache = {name: first[present] for name, present in zip(names, presents, strict=True)}
    second = run(decoder, {**nothing, **_asked((ANSWER,), length + 1), **cache})
    return np.concatenate([first[contract.LOGITS][0], second[contract.LOGITS][0]])


def open_graph(model: ir.Model, path: Path) -> ort.InferenceSession:
    write_graph(model, path)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run(session: ort.InferenceSession, feeds: Mapping[str, Array]) -> dict[str, Array]:
    wanted = {value.name: _NUMPY.get(value.type) for value in session.get_inputs()}
    cast = {name: array.astype(wanted[name] or array.dtype) for name, array in feeds.items()}
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, cast), strict=True))


def emulate(model: ir.Model, half: ir.DataType) -> None:
    """Let each node in half precision compute in float32 and round its results, as CUDA does.

    Inputs and outputs become float32. A CPU has no such kernels: a bfloat16 graph does not open,
    and of a float16 graph ONNX Runtime leaves out roundings that it thinks needless.
    """
    graph = model.graph
    for value in graph.inputs:
        if value.dtype == half:
            value.type = ir.TensorType(_FLOAT)
    for node in [node for node in graph if node.op_type != "Cast"]:
        for place, read in enumerate(node.inputs):
            if read is not None and read.dtype == half:
                cast = ir.node("Cast", [read], attributes={"to": _FLOAT})
                graph.insert_before(node, cast)
                node.replace_input_with(place, cast.outputs[0])
        for output in [output for output in node.outputs if output.dtype == half]:
            output.type = ir.TensorType(_FLOAT)
            _cast_after(graph, output, half)
    for value in list(graph.outputs):
        if value.dtype == half:
            _cast_after(graph, value, _FLOAT)


def _asked(ids: Sequence[int], length: int) -> dict[str, Array]:
    return {
        contract.INPUT_IDS: np.array([ids], np.int64),
        contract.SEQLENS_K: np.array([length - 1], np.int32),
        contract.TOTAL_SEQUENCE_LENGTH: np.array(length, np.int32),
    }


def _cast_after(graph: ir.Graph, value: ir.Value, dtype: ir.DataType) -> None:
    """Let all readers of a value, and the graph's output, read it in another dtype."""
    producer = value.producer()
    assert producer is not None
    cast = ir.node("Cast", [value], attributes={"to": dtype})
    instead = cast.outputs[0]
    instead.type, instead.shape = ir.TensorType(dtype), value.shape
    value.replace_all_uses_with(instead, replace_graph_outputs=True)
    cast.replace_input_with(0, value)
    graph.insert_after(producer, cast)
    if instead.is_graph_output():
        value.name, instead.name = f"{value.name}.{value.dtype}", value.name
