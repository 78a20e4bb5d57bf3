"""Runs questions through the float graphs and keeps statistics of what each layer reads.

The graphs run in pieces (`stream`), so a full-size model is calibrated in the memory of one of
its blocks. An answer's tokens count for more than the many tokens of a picture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from paligemma_edge.quantize.derived import Float
from paligemma_edge.quantize.linear import Linear, linears
from paligemma_edge.quantize.statistics import Accumulator, Moments
from paligemma_edge.quantize.stream import Array, Run, stream
from paligemma_edge.runtime import contract
from paligemma_edge.runtime.contract import ModelFacts

Progress = Callable[[str, int, int], None]  # stage, pieces done, pieces in all

# Pictures have 256 tokens and more, answers ten; yet every token of an answer is a decision.
_ANSWER_WEIGHT = 4.0


@dataclass(frozen=True)
class Asked:
    """A picture, by its number, the ids of a prompt, and those of its answer (none: unknown)."""

    picture: int
    ids: tuple[int, ...]
    answer: tuple[int, ...] = ()


def calibrate(
    graphs: Mapping[str, ir.Model],
    facts: ModelFacts,
    pictures: Sequence[Float],
    asked: Sequence[Asked],
    *,
    second: bool,
    progress: Progress | None = None,
) -> dict[str, Moments]:
    """Statistics of the input of every linear layer, by the layer's name.

    `pictures` are pixel values [3, R, R]. `second` asks for second moments, which GPTQ needs.
    """
    tell = progress or (lambda *_: None)
    watch = _Watch(second)
    seen = [Run({contract.PIXEL_VALUES: pixels[None]}) for pixels in pictures]
    hidden = watch.run(graphs, contract.VISION_ENCODER, seen, contract.LAST_HIDDEN_STATE, tell)
    seen = [Run({contract.LAST_HIDDEN_STATE: state}) for state in hidden]
    features = watch.run(graphs, contract.PROJECTOR, seen, contract.IMAGE_FEATURES, tell)
    runs = [run for question in asked for run in _runs(question, features, facts)]
    watch.run(graphs, contract.DECODER, runs, None, tell)
    return watch.moments()


class _Watch:
    """Accumulators by the name of the value that layers read, over all graphs."""

    def __init__(self, second: bool) -> None:
        self.second = second
        self.layers: list[Linear] = []
        self.seen: dict[str, Accumulator] = {}

    def run(
        self,
        graphs: Mapping[str, ir.Model],
        graph: str,
        runs: Sequence[Run],
        output: str | None,
        tell: Progress,
    ) -> list[Array]:
        """Pass all runs through a graph; its output for each of them."""
        found: dict[int, Array] = {}
        layers = linears(graphs[graph])
        self.layers += layers
        inputs = {layer.input.name: layer for layer in layers if layer.input.name}

        def observe(number: int, name: str, array: Array) -> None:
            if name == output:
                found[number] = array
            if name in inputs:
                self._add(inputs[name], array, _ANSWER_WEIGHT if runs[number].causal else 1.0)

        for number, run in enumerate(runs):
            for name in inputs.keys() & run.values.keys():
                observe(number, name, run.values[name])
        wanted = {*inputs, output} if output else set(inputs)
        stream(graphs[graph], runs, wanted, observe, lambda done, of: tell(graph, done, of))
        return [found[number] for number in range(len(runs))] if output else []

    def _add(self, layer: Linear, array: Array, weight: float) -> None:
        name = str(layer.input.name)
        if name not in self.seen:
            self.seen[name] = Accumulator(layer.in_features, second=self.second)
        self.seen[name].add(array.reshape(-1, layer.in_features), weight)

    def moments(self) -> dict[str, Moments]:
        means = {name: accumulator.moments() for name, accumulator in self.seen.items()}
        return {layer.name: means[str(layer.input.name)] for layer in self.layers}


def _runs(question: Asked, features: Sequence[Array], facts: ModelFacts) -> list[Run]:
    """The prompt; then all of the answer but its last token, which no layer reads."""
    picture = features[question.picture]
    prompt_length = picture.shape[1] + len(question.ids)
    fed = question.answer[:-1]
    capacity = prompt_length + len(fed)
    prompt = _run(picture, question.ids, prompt_length)
    row = (1, facts.num_kv_heads, capacity, facts.head_dim)
    names = [name for layer in range(facts.num_layers) for name in contract.past_names(layer)]
    prompt.values |= {name: np.zeros(row, np.float32) for name in names}
    if not fed:
        return [prompt]
    presents = [n for layer in range(facts.num_layers) for n in contract.present_names(layer)]
    answer = _run(picture[:, :0], fed, capacity)
    answer.causal, answer.after = True, prompt
    answer.takes = dict(zip(names, presents, strict=True))
    return [prompt, answer]


def _run(features: Array, ids: Sequence[int], length: int) -> Run:
    return Run(
        {
            contract.IMAGE_FEATURES: features,
            contract.INPUT_IDS: np.array([ids], np.int64),
            contract.SEQLENS_K: np.array([length - 1], np.int32),
            contract.TOTAL_SEQUENCE_LENGTH: np.array(length, np.int32),
        }
    )
