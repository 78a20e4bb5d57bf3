"""The smallest variant that keeps enough of the answers: by measurement, not by a list of names.

Layers are given their next safer scheme in an order, first those that gain most for a byte; the
search halves the number of such steps until the fewest are found.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from paligemma_edge.quantize.calibration.samples import Calibration
from paligemma_edge.quantize.recipes.recipe import Recipe, Scheme
from paligemma_edge.quantize.variant.files import write_variant
from paligemma_edge.quantize.variant.passes import Graphs, TransformedGraphs, round_graphs
from paligemma_edge.quantize.variant.sensitivity import SchemeChoice, SchemeChoices
from paligemma_edge.runtime.bundle.bundle import Bundle
from paligemma_edge.runtime.bundle.writer import new_bundle
from paligemma_edge.runtime.engine.replay import encode_prompt, greedy
from paligemma_edge.runtime.errors import OptionError
from paligemma_edge.runtime.loading.loaded_model import LoadedModel, load_model
from paligemma_edge.runtime.progress import Progress


def smallest_that_keeps(
    bundle: Bundle,
    recipe: Recipe,
    transformed: TransformedGraphs,
    choices: SchemeChoices,
    known: Calibration,
    *,
    min_agreement: float,
    progress: Progress,
) -> SchemeChoices:
    """The choices with the fewest safer schemes that keep `min_agreement` of the answers.

    OptionError where even the safest do not.
    """
    sizes = {
        name: layer.in_features * layer.out_features for name, layer in transformed.layers().items()
    }
    steps = _steps(choices, recipe, sizes)
    stages = [dict(choices)]
    for step in steps:
        stages.append({**stages[-1], step.layer: step})
    measured: dict[int, float] = {}
    tries = 1 + len(stages).bit_length()  # the safest, then by halving

    def keeps(place: int) -> bool:
        progress(f"searching {recipe.name}", len(measured), tries)
        graphs = round_graphs(transformed, recipe, stages[place])
        measured[place] = _agreement(bundle, recipe, graphs, known)
        return measured[place] >= min_agreement

    if not keeps(len(stages) - 1):
        raise OptionError(
            f"recipe {recipe.name} keeps {measured[len(stages) - 1]:.1%} of the answers with its "
            f"safest schemes, wanted {min_agreement:.1%}; name safer ones in a recipe of "
            "your own, or lower min_agreement"
        )
    return stages[_first(keeps, len(stages) - 1)]


def _first(keeps: Callable[[int], bool], last: int) -> int:
    """The first place that keeps, by halving; `last` does."""
    low, high = 0, last
    while low < high:
        middle = (low + high) // 2
        if keeps(middle):
            high = middle
        else:
            low = middle + 1
    return high


def _steps(choices: SchemeChoices, recipe: Recipe, sizes: Mapping[str, int]) -> list[SchemeChoice]:
    """All moves to safer schemes: rank by rank, in each the largest gain for a byte first."""
    steps: list[SchemeChoice] = []
    current = [choice for choice in choices.values() if choice.safer() is not None]
    while current:
        moved = [(choice, safer) for choice in current if (safer := choice.safer()) is not None]
        moved.sort(key=lambda pair: -_gain(pair[0], pair[1], recipe, sizes[pair[0].layer]))
        steps += [safer for _, safer in moved]
        current = [safer for _, safer in moved if safer.safer() is not None]
    return steps


def _gain(before: SchemeChoice, after: SchemeChoice, recipe: Recipe, size: int) -> float:
    """The reduction of the squared error, for each byte that is added."""
    schemes = recipe.schemes
    added = size * (_bytes(schemes[after.scheme]) - _bytes(schemes[before.scheme]))
    return (before.error**2 - after.error**2) / max(added, 1.0)


def _bytes(scheme: Scheme) -> float:
    return 4.0 if scheme.kind == "float" else scheme.bits / 8


def _agreement(bundle: Bundle, recipe: Recipe, graphs: Graphs, known: Calibration) -> float:
    """The share of answers that a variant gives as the lossless one did."""
    with tempfile.TemporaryDirectory(prefix="paligemma-edge-") as folder:
        path = Path(folder) / "candidate.bundle"
        _write(bundle, recipe, graphs, path)
        return _same(load_model(path, variant=recipe.name), known)


def _write(bundle: Bundle, recipe: Recipe, graphs: Graphs, path: Path) -> None:
    tokenizer = bundle.manifest.tokenizer.file
    with new_bundle(path) as writer:
        writer.write(tokenizer, bundle.file(tokenizer).read_bytes())
        variant = write_variant(writer, recipe, graphs, {})
        manifest = dataclasses.replace(
            bundle.manifest,
            variants={recipe.name: variant},
            default_variant=None,
            files={},
            prepacked={},
            lora_graphs={},
            adapters={},
        )
        writer.finish(manifest)


def _same(model: LoadedModel, known: Calibration) -> float:
    eos_ids, same = model.bundle.manifest.tokenizer.eos_ids, 0
    for sample in known.samples:
        pixels = known.images[sample.image][None]
        prompt = encode_prompt(model.engine, pixels, sample.ids)
        answer = greedy(model.engine, prompt, len(sample.answer), eos_ids)
        same += tuple(token for token, _ in answer) == sample.answer
    return same / len(known.samples)
