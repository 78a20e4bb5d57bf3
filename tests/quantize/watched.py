"""A model whose inner values are seen: whole graphs in ONNX Runtime, with more outputs.

This is what the pieces of `stream` and the statistics of `calibrate` are held against.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from paligemma_edge.quantize.calibrate import Asked
from paligemma_edge.quantize.graph_file import write_graph
from paligemma_edge.quantize.linear import linears
from paligemma_edge.runtime import contract
from paligemma_edge.runtime.contract import ModelFacts
from tests.quantize.half_graphs import Array, load, run

Values = dict[str, Array]


@dataclass(frozen=True)
class Case:
    """A bundle, and pixel values [2, 3, R, R]."""

    bundle: Path
    facts: ModelFacts
    pixels: Array

    def graphs(self) -> dict[str, ir.Model]:
        return load(self.bundle)


def inputs_of_layers(model: ir.Model) -> set[str]:
    return {str(layer.input.name) for layer in linears(model)}


def watch(model: ir.Model, names: Iterable[str], path: Path) -> ort.InferenceSession:
    """The graph with inner values among its outputs."""
    write_graph(model, path)
    proto = onnx.load(path)
    known = {value.name for value in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=n) for n in sorted(set(names) - known))
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


@dataclass(frozen=True)
class Whole:
    """Graphs that tell what all their layers read."""

    facts: ModelFacts
    sessions: Mapping[str, ort.InferenceSession]

    @classmethod
    def open(cls, graphs: Mapping[str, ir.Model], facts: ModelFacts, folder: Path) -> Whole:
        folder.mkdir()
        return cls(
            facts,
            {
                name: watch(model, inputs_of_layers(model), folder / f"{name}.onnx")
                for name, model in graphs.items()
            },
        )

    def see(self, pixels: Array) -> tuple[Values, Values]:
        """What the vision encoder and the projector compute of pixels [3, R, R]."""
        vision = run(self.sessions[contract.VISION_ENCODER], {contract.PIXEL_VALUES: pixels[None]})
        hidden = {contract.LAST_HIDDEN_STATE: vision[contract.LAST_HIDDEN_STATE]}
        return vision, hidden | run(self.sessions[contract.PROJECTOR], hidden)

    def read(self, features: Array, asked: Asked) -> tuple[Values, Values]:
        """What the decoder computes of a prompt, and of an answer token by token."""
        length = features.shape[1] + len(asked.ids)
        fed = asked.answer[:-1]
        row = (1, self.facts.num_kv_heads, length + len(fed), self.facts.head_dim)
        cache = {name: np.zeros(row, np.float32) for name in self._names(contract.past_names)}
        prompt = self._decode(features, asked.ids, length, cache)
        last, steps = prompt, []
        for place, token in enumerate(fed, 1):
            last = self._decode(features[:, :0], (token,), length + place, self._kept(last))
            steps.append(last)
        return prompt, {name: np.concatenate([s[name] for s in steps]) for name in last if steps}

    def _decode(
        self, features: Array, ids: Sequence[int], length: int, cache: Mapping[str, Array]
    ) -> Values:
        feeds = {
            contract.IMAGE_FEATURES: features,
            contract.INPUT_IDS: np.array([ids], np.int64),
            contract.SEQLENS_K: np.array([length - 1], np.int32),
            contract.TOTAL_SEQUENCE_LENGTH: np.array(length, np.int32),
        }
        return run(self.sessions[contract.DECODER], {**feeds, **cache})

    def _kept(self, last: Values) -> Values:
        past, present = self._names(contract.past_names), self._names(contract.present_names)
        return {name: last[made] for name, made in zip(past, present, strict=True)}

    def _names(self, of: Callable[[int], tuple[str, str]]) -> list[str]:
        return [name for layer in range(self.facts.num_layers) for name in of(layer)]
