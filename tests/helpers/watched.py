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

from paligemma_edge.quantize.calibration.calibrate import CalibrationSample, calibrate
from paligemma_edge.quantize.graphs.derived_weights import Float, matrix_rows
from paligemma_edge.quantize.graphs.graph_file import write_graph
from paligemma_edge.quantize.graphs.linear import Linear, linears
from paligemma_edge.quantize.graphs.prefill import whole_prompt
from paligemma_edge.quantize.rounding.statistics import Moments
from paligemma_edge.runtime import contract
from paligemma_edge.runtime.device.ort import ort
from paligemma_edge.runtime.manifest import ModelConfig
from tests.helpers.half_graphs import Array, load, run

Values = dict[str, Array]
AssertSame = Callable[[Mapping[str, ir.Model]], None]  # graphs with the logits of the case

TEXT = (2, 411, 108)
QUESTIONS = (
    CalibrationSample(0, (2, 411, 97, 1203, 108), (640, 77, 901, 12, 1)),
    CalibrationSample(1, (2, 5, 108)),
)


@dataclass(frozen=True)
class Case:
    """A bundle, and pixel values [2, 3, R, R]."""

    bundle: Path
    config: ModelConfig
    pixels: Array

    def graphs(self) -> dict[str, ir.Model]:
        return load(self.bundle)

    def moments(self, graphs: Mapping[str, ir.Model]) -> dict[str, Moments]:
        """What some graphs of this model read of two questions."""
        return calibrate(graphs, self.config, list(self.pixels), QUESTIONS, second=True)

    def features(self) -> Array:
        """Random ones, [1, N, hidden]."""
        shape = (1, self.config.image_tokens, self.config.hidden_size)
        return np.random.default_rng(2).normal(size=shape).astype(np.float32)


def by_name(graphs: Mapping[str, ir.Model]) -> dict[str, Linear]:
    return {layer.name: layer for model in graphs.values() for layer in linears(model)}


def matrix(layer: Linear) -> Float:
    """The whole weight, [out, in]."""
    return matrix_rows(layer.tensor, 0, layer.out_features, layer.columns_first)


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


def read_prompt(model: ir.Model, features: Array, config: ModelConfig, path: Path) -> Values:
    """What a decoder or a prefill graph computes of features [1, N, hidden] and a short text."""
    session = watch(model, inputs_of_layers(model), path)
    return run(session, decoder_feeds(features, TEXT, features.shape[1] + len(TEXT), config))


def assert_same_moments(found: Moments, expected: Moments, name: str) -> None:
    """All but the peaks."""
    assert len(found.second) == len(expected.second)
    pairs = [*zip(found.second, expected.second, strict=True)]
    pairs += [(found.largest, expected.largest), (found.squares, expected.squares)]
    for ours, theirs in pairs:
        atol = 1e-3 * float(np.abs(theirs).max())
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol, err_msg=name)


@dataclass(frozen=True)
class Whole:
    """Graphs that also output what all their layers read."""

    config: ModelConfig
    sessions: Mapping[str, ort.InferenceSession]

    @classmethod
    def open(cls, graphs: Mapping[str, ir.Model], config: ModelConfig, folder: Path) -> Whole:
        folder.mkdir()
        models = {**graphs, contract.PREFILL: whole_prompt(graphs[contract.DECODER])}
        return cls(
            config,
            {
                name: watch(model, inputs_of_layers(model), folder / f"{name}.onnx")
                for name, model in models.items()
            },
        )

    def see(self, pixels: Array) -> tuple[Values, Values]:
        """What the vision encoder and the projector compute of pixels [3, R, R]."""
        vision = run(self.sessions[contract.VISION_ENCODER], {contract.PIXEL_VALUES: pixels[None]})
        hidden = {contract.LAST_HIDDEN_STATE: vision[contract.LAST_HIDDEN_STATE]}
        return vision, hidden | run(self.sessions[contract.PROJECTOR], hidden)

    def read(self, features: Array, sample: CalibrationSample) -> tuple[Values, Values]:
        """What the decoder computes of a prompt, and of an answer token by token."""
        length, fed = features.shape[1] + len(sample.ids), sample.answer[:-1]
        decoder = self.sessions[contract.DECODER]
        feeds = decoder_feeds(features, sample.ids, length, self.config, room=len(fed))
        prompt = last = run(self.sessions[contract.PREFILL], feeds)
        steps = []
        for place, token in enumerate(fed, 1):
            feeds = decoder_feeds(features[:, :0], (token,), length + place, self.config)
            last = run(decoder, {**feeds, **self._kept(last)})
            steps.append(last)
        return prompt, {name: np.concatenate([s[name] for s in steps]) for name in last if steps}

    def _kept(self, last: Values) -> Values:
        past, present = (_names(self.config, of) for of in _CACHE)
        return {name: last[made] for name, made in zip(past, present, strict=True)}


_CACHE = (contract.past_names, contract.present_names)


def decoder_feeds(
    features: Array, ids: Sequence[int], length: int, config: ModelConfig, *, room: int = 0
) -> Values:
    """All inputs of a decoder; the cache is empty."""
    row = (1, config.num_kv_heads, length + room, config.head_dim)
    return {
        contract.IMAGE_FEATURES: features,
        contract.INPUT_IDS: np.array([ids], np.int64),
        contract.SEQLENS_K: np.array([length - 1], np.int32),
        contract.TOTAL_SEQUENCE_LENGTH: np.array(length, np.int32),
        **{name: np.zeros(row, np.float32) for name in _names(config, contract.past_names)},
    }


def _names(config: ModelConfig, of: Callable[[int], tuple[str, str]]) -> list[str]:
    return [name for layer in range(config.num_layers) for name in of(layer)]
