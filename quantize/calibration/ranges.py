"""How large the values grow that are to be in float16, and which layers must not be in it.

Runs calibration's questions through the float32 graphs and keeps one number of each value. Only
float16 needs this: bfloat16 reaches as far as float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from paligemma_edge.quantize.calibration.calibrate import (
    CalibrationSample,
    pass_questions,
    require_finite_values,
)
from paligemma_edge.quantize.calibration.stream import Array, Run
from paligemma_edge.quantize.graphs.derived_weights import Float
from paligemma_edge.quantize.graphs.linear import initializer
from paligemma_edge.quantize.graphs.nodes import Nodes
from paligemma_edge.quantize.schemes.half_plan import ALWAYS_FLOAT, HalfPlan, passes_on, plan_half
from paligemma_edge.runtime import contract
from paligemma_edge.runtime.errors import OptionError
from paligemma_edge.runtime.manifest import ModelConfig
from paligemma_edge.runtime.progress import Progress

# Half of what float16 reaches: other images may show more than those of the calibration.
LIMIT = 65504 / 2

_HALF = ir.DataType.FLOAT16
_GRAPHS = (contract.VISION_ENCODER, contract.PROJECTOR, contract.DECODER)
_OUTPUTS = (contract.LAST_HIDDEN_STATE, contract.IMAGE_FEATURES, contract.LOGITS)
_LARGEST = ".largest"


@dataclass(frozen=True)
class Range:
    """The largest magnitude of a value that float16 is planned for.

    `layers` would have to compute in float32 if that is too much. It may not be enough: what is
    `fixed` is read or computed by attention, or passes from graph to graph, in float16 in any case.
    """

    graph: str
    value: str
    largest: float
    layers: tuple[str, ...]
    fixed: bool


def scan_ranges(
    graphs: Mapping[str, ir.Model],
    config: ModelConfig,
    images: Sequence[Float],
    samples: Sequence[CalibrationSample],
    *,
    progress: Progress | None = None,
) -> list[Range]:
    """The range of every value that `to_half` would put into float16, in the order of the data.

    `graphs` are float32, with products still to be rounded; `images` are pixel values
    [3, R, R]. BundleError where they compute NaN or Inf themselves.
    """
    copies = {name: graphs[name].clone() for name in _GRAPHS}
    scans = {name: _Scan(name, model) for name, model in copies.items()}
    pass_questions(
        copies,
        config,
        images,
        samples,
        wanted={name: [*scan.watched, *_OUTPUTS] for name, scan in scans.items()},
        observe=lambda graph, name, array, run: scans[graph].see(name, array, run),
        progress=progress,
    )
    return [seen for scan in scans.values() for seen in scan.ranges()]


def overflowing(ranges: Iterable[Range], *, limit: float = LIMIT) -> dict[str, float]:
    """The layers that must compute in float32, each with the largest magnitude that says so.

    OptionError where a value is too large that is float16 in any case.
    """
    kept: dict[str, float] = {}
    for value in ranges:
        if value.largest <= limit:
            continue
        if value.fixed:
            raise OptionError(
                f"{value.graph}: {' and '.join(value.layers) or value.value} would put "
                f"{value.largest:,.0f} into float16 where nothing can stay in float32, wanted at "
                f"most {limit:,.0f}; use a recipe that computes in bfloat16"
            )
        for layer in value.layers:
            kept[layer] = max(value.largest, kept.get(layer, 0.0))
    return kept


def range_notes(kept: Mapping[str, float]) -> tuple[str, ...]:
    """A line for each layer that stays in float32, for the report."""
    return tuple(f"{name} kept in float32: {seen:,.0f} seen" for name, seen in kept.items())


class _Scan:
    """One graph with the largest magnitude of each watched value as a value of its own."""

    def __init__(self, name: str, model: ir.Model) -> None:
        self.name = name
        plan = plan_half(model, _HALF, keep_float=())
        self.watched = {f"{value.name}{_LARGEST}": value for value in _in_half(plan)}
        self.plan = plan
        self.seen = dict.fromkeys(self.watched, 0.0)
        for largest, value in self.watched.items():
            _add_largest(model, value, largest)

    def see(self, name: str, array: Array, _: Run) -> None:
        require_finite_values(self.name, name.removesuffix(_LARGEST), array)
        if name in self.seen:
            self.seen[name] = max(self.seen[name], float(array))

    def ranges(self) -> Iterator[Range]:
        for name, value in self.watched.items():
            layers = dict.fromkeys([*_made_by(self.plan, value), *_read_by(self.plan, value)])
            named = tuple(layer for layer in layers if layer is not None)
            yield Range(self.name, str(value.name), self.seen[name], named, None in layers)


def _in_half(plan: HalfPlan) -> list[ir.Value]:
    """What float16 nodes compute and read, but for inputs, which other graphs compute.

    What is stored in half precision, such as the rows of a table, is left out too.
    """
    values: dict[ir.Value, None] = {}
    for node, dtype in plan.nodes.items():
        if dtype == _HALF:
            touched = [value for value in (*node.inputs, *node.outputs) if value is not None]
            values |= dict.fromkeys(touched)
        values |= dict.fromkeys(v for v in node.outputs if _leaves_in_half(v))
    return [
        value
        for value in values
        if value in plan.values and value.producer() is not None and not _stored(value)
    ]


def _leaves_in_half(value: ir.Value) -> bool:
    return value.is_graph_output() and value.name not in ALWAYS_FLOAT


def _stored(value: ir.Value) -> bool:
    return initializer(value) is not None or value.dtype not in (None, ir.DataType.FLOAT)


def _made_by(plan: HalfPlan, value: ir.Value) -> Iterator[str | None]:
    """The layer that, in float32, makes a value so; None stands for what cannot be in float32."""
    node = value.producer()
    if node is None or plan.nodes[node] != _HALF:
        return
    if node in plan.layers:
        yield plan.layers[node]
    elif passes_on(node):
        # One operand in float32 is enough: a product of two layers needs the last of them alone.
        operands = [read for read in node.inputs if read in plan.values and not initializer(read)]
        yield from _made_by(plan, operands[-1])
    elif node.op_type == "GroupQueryAttention":
        yield None


def _read_by(plan: HalfPlan, value: ir.Value) -> Iterator[str | None]:
    """Layers that read a value, as above."""
    if _leaves_in_half(value):
        yield None
    for node in (use.node for use in value.uses()):
        if plan.nodes.get(node) != _HALF:
            continue
        if node in plan.layers:
            yield plan.layers[node]
        elif passes_on(node):
            for output in node.outputs:
                yield from _read_by(plan, output)
        elif node.op_type == "GroupQueryAttention":
            yield None


def _add_largest(model: ir.Model, value: ir.Value, name: str) -> None:
    nodes = Nodes(model, name)
    largest = nodes.add("ReduceMax", nodes.add("Abs", value), keepdims=0)
    largest.name = name
    producer = value.producer()
    assert producer is not None
    nodes.insert_after(producer)
