"""Runs questions through the float graphs and keeps statistics of what each layer reads.

The graphs run in pieces (`stream`), so a full-size model is calibrated in the memory of one of
its blocks. An answer's tokens count for more than the many tokens of an image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from paligemma_edge.quantize.calibration.stream import Array, Run, stream
from paligemma_edge.quantize.graphs.check_finite import all_finite
from paligemma_edge.quantize.graphs.derived_weights import Float
from paligemma_edge.quantize.graphs.linear import linears
from paligemma_edge.quantize.rounding.statistics import Accumulator, Moments
from paligemma_edge.runtime import contract
from paligemma_edge.runtime.errors import BundleError
from paligemma_edge.runtime.manifest import ModelConfig
from paligemma_edge.runtime.progress import Progress, no_progress

Observe = Callable[[str, str, Array, Run], None]  # graph, name of a value, the value, its run

_GRAPHS = (contract.VISION_ENCODER, contract.PROJECTOR, contract.DECODER)

# Images have 256 tokens and more, answers ten; yet every token of an answer is a decision.
_ANSWER_WEIGHT = 4.0


@dataclass(frozen=True)
class CalibrationSample:
    """An image, by its number, the ids of a prompt, and those of its answer (none: unknown)."""

    image: int
    ids: tuple[int, ...]
    answer: tuple[int, ...] = ()


def calibrate(
    graphs: Mapping[str, ir.Model],
    config: ModelConfig,
    images: Sequence[Float],
    samples: Sequence[CalibrationSample],
    *,
    second: bool,
    progress: Progress | None = None,
) -> dict[str, Moments]:
    """Statistics of the input of every linear layer, by the layer's name.

    `images` are pixel values [3, R, R]. `second` adds second moments, which GPTQ needs.
    """
    watch = _Watch(graphs, second)
    pass_questions(
        graphs,
        config,
        images,
        samples,
        wanted=watch.names(),
        observe=watch.add,
        progress=progress,
    )
    return watch.moments()


def pass_questions(
    graphs: Mapping[str, ir.Model],
    config: ModelConfig,
    images: Sequence[Float],
    samples: Sequence[CalibrationSample],
    *,
    wanted: Mapping[str, Iterable[str]],
    observe: Observe,
    progress: Progress | None = None,
) -> None:
    """Pass every question through the three graphs; `observe` gets the wanted values, by graph."""
    report = progress or no_progress

    def run(graph: str, runs: Sequence[Run], output: str | None) -> list[Array]:
        names = set(wanted.get(graph, ()))
        results: dict[int, Array] = {}

        def see(number: int, name: str, array: Array) -> None:
            if name == output:
                results[number] = array
            if name in names:
                observe(graph, name, array, runs[number])

        for number, one in enumerate(runs):
            for name in names & one.values.keys():
                see(number, name, one.values[name])
        outputs = {output} if output else set()
        stream(graphs[graph], runs, names | outputs, see, lambda done, of: report(graph, done, of))
        return [results[number] for number in range(len(results))]

    seen = [Run({contract.PIXEL_VALUES: pixels[None]}) for pixels in images]
    hidden = run(contract.VISION_ENCODER, seen, contract.LAST_HIDDEN_STATE)
    seen = [Run({contract.LAST_HIDDEN_STATE: state}) for state in hidden]
    features = run(contract.PROJECTOR, seen, contract.IMAGE_FEATURES)
    run(
        contract.DECODER,
        [r for question in samples for r in _runs(question, features, config)],
        None,
    )


def require_finite_values(graph: str, name: str, array: Array) -> None:
    """BundleError where a float32 graph computes NaN or Inf of finite weights."""
    if not all_finite(array):
        raise BundleError(
            f"{graph} computes NaN or Inf in float32 already ({name}), wanted finite values; check "
            "the checkpoint and export the bundle again"
        )


class _Watch:
    """Accumulators of what layers read, by graph and by the value's name."""

    def __init__(self, graphs: Mapping[str, ir.Model], second: bool) -> None:
        self.second = second
        self.layers = {graph: linears(graphs[graph]) for graph in _GRAPHS}
        self.seen: dict[tuple[str, str], Accumulator] = {}

    def names(self) -> dict[str, set[str]]:
        return {g: {str(layer.input.name) for layer in layers} for g, layers in self.layers.items()}

    def add(self, graph: str, name: str, array: Array, run: Run) -> None:
        require_finite_values(graph, name, array)
        width = array.shape[-1]
        if (graph, name) not in self.seen:
            self.seen[graph, name] = Accumulator(width, second=self.second)
        weight = _ANSWER_WEIGHT if run.causal else 1.0
        self.seen[graph, name].add(array.reshape(-1, width), weight)

    def moments(self) -> dict[str, Moments]:
        means = {key: accumulator.moments() for key, accumulator in self.seen.items()}
        return {
            layer.name: means[graph, str(layer.input.name)]
            for graph, layers in self.layers.items()
            for layer in layers
        }


def _runs(question: CalibrationSample, features: Sequence[Array], config: ModelConfig) -> list[Run]:
    """The prompt; then all of the answer but its last token, which no layer reads."""
    image = features[question.image]
    prompt_length = image.shape[1] + len(question.ids)
    fed = question.answer[:-1]
    capacity = prompt_length + len(fed)
    prompt = _run(image, question.ids, prompt_length)
    row = (1, config.num_kv_heads, capacity, config.head_dim)
    names = [name for layer in range(config.num_layers) for name in contract.past_names(layer)]
    prompt.values |= {name: np.zeros(row, np.float32) for name in names}
    if not fed:
        return [prompt]
    presents = [n for layer in range(config.num_layers) for n in contract.present_names(layer)]
    answer = _run(image[:, :0], fed, capacity)
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
