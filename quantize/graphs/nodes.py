"""Nodes that a pass adds to a graph: recorded on a tape, named, and then inserted together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.tape import Tape

from paligemma_edge.quantize.graphs.constants import add_constant

_Attribute: TypeAlias = int | Sequence[int]


@dataclass(frozen=True)
class Nodes:
    """New nodes of one graph, in order; their outputs are called `PREFIX.node.output`."""

    model: ir.Model
    prefix: str  # unique in the graph
    tape: Tape = field(default_factory=Tape)

    def add(
        self, kind: str, *inputs: ir.Value, domain: str = "", **attributes: _Attribute
    ) -> ir.Value:
        """Record a node and return its only output."""
        return self.add_many(kind, *inputs, outputs=1, domain=domain, **attributes)[0]

    def add_many(
        self,
        kind: str,
        *inputs: ir.Value,
        outputs: int,
        domain: str = "",
        **attributes: _Attribute,
    ) -> Sequence[ir.Value]:
        """Record a node and return its outputs."""
        number = len(self.tape.nodes)
        values = self.tape.op_multi_out(
            kind, inputs, attributes, num_outputs=outputs, domain=domain
        )
        for place, value in enumerate(values):
            value.name = f"{self.prefix}.{number}.{place}"
        return values

    def constant(self, name: str, array: NDArray[Any]) -> ir.Value:
        """A small array as an initializer of the graph, which all nodes share by its name."""
        return add_constant(self.model, name, array)

    def append(self) -> None:
        """Put the nodes at the end of the graph."""
        self.model.graph.extend(self.tape.nodes)

    def insert_before(self, node: ir.Node) -> None:
        """Put the nodes before one of the graph."""
        self.model.graph.insert_before(node, self.tape.nodes)

    def insert_after(self, node: ir.Node) -> None:
        """Put the nodes after one of the graph."""
        self.model.graph.insert_after(node, self.tape.nodes)
