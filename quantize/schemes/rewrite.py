"""Puts nodes and tensors into a graph in the place of a linear layer.

Knows graphs. Knows no scheme.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from paligemma_edge.quantize.graphs.constants import add_initializer
from paligemma_edge.quantize.graphs.derived_weights import Float, lazy_array, row_chunks
from paligemma_edge.quantize.graphs.linear import Linear
from paligemma_edge.quantize.graphs.nodes import Nodes
from paligemma_edge.quantize.rounding.rounding import Rounded
from paligemma_edge.runtime.system.linux import usable_cores

Round: TypeAlias = Callable[[Float], Rounded]  # rows [rows, in] of a weight to codes
Parts: TypeAlias = dict[str, NDArray[Any]]  # arrays whose first axis is that of the rows


class RoundedWeight:
    """Codes and scales of one layer: computed when either is read, kept until both were."""

    def __init__(self, layer: Linear, round_rows: Round, pack: Callable[[Rounded], Parts]) -> None:
        self.tensor, self.columns_first = layer.tensor, layer.columns_first
        self.round_rows, self.pack = round_rows, pack
        self.lock = threading.Lock()
        self.kept: Parts = {}

    def take(self, name: str) -> NDArray[Any]:
        """One of the packed arrays, of all rows."""
        with self.lock:
            if name not in self.kept:
                self.kept = self._compute()
            return self.kept.pop(name)

    def _compute(self) -> Parts:
        parts: list[Parts] = []
        cores = usable_cores()
        with ThreadPoolExecutor(cores) as pool:
            for _, rows in row_chunks(self.tensor, self.columns_first):
                shares = [share for share in np.array_split(rows, cores) if len(share)]
                parts += pool.map(lambda share: self.pack(self.round_rows(share)), shares)
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def replace(layer: Linear, nodes: Nodes) -> None:
    """Replace a layer's product by the last of `nodes`; a weight that none reads is removed."""
    old, new = layer.node.outputs[0], nodes.tape.nodes[-1].outputs[0]
    new.name, new.type, new.shape = old.name, old.type, old.shape
    operand = layer.node.inputs[1]
    ir.convenience.replace_all_uses_with(old, new)
    nodes.insert_before(layer.node)
    nodes.model.graph.remove(layer.node, safe=True)
    _forget(nodes.model, operand)


def add_lazy(
    model: ir.Model,
    name: str,
    evaluate: Callable[[], NDArray[Any]],
    dtype: ir.DataType,
    shape: list[int],
) -> ir.Value:
    """Register a tensor that is computed when it is written."""
    return add_initializer(model, name, lazy_array(name, evaluate, dtype, shape))


def _forget(model: ir.Model, operand: ir.Value | None) -> None:
    """Remove a weight that nothing reads any more, and its `Cast`."""
    if operand is None or operand.uses():
        return
    producer = operand.producer()
    if producer is not None:
        source = producer.inputs[0]
        model.graph.remove(producer, safe=True)
        _forget(model, source)
    elif operand.is_initializer() and operand.name:
        del model.graph.initializers[operand.name]
