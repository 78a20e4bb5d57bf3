"""Graphs of a recipe as files of a bundle, and the manifest's lines about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from paligemma_edge.quantize.graphs.graph_file import Written, disk_bytes, weight_bytes, write_graph
from paligemma_edge.quantize.graphs.linear import EMBEDDING, WEIGHT
from paligemma_edge.quantize.recipes.recipe import Recipe
from paligemma_edge.quantize.transforms.changes import Changes
from paligemma_edge.quantize.transforms.changes_file import CHANGES_FILE, write_changes
from paligemma_edge.runtime.bundle.staging import StagedFiles
from paligemma_edge.runtime.manifest import Variant
from paligemma_edge.runtime.progress import Progress, no_progress


def write_variant(
    writer: StagedFiles,
    recipe: Recipe,
    graphs: Mapping[str, ir.Model],
    changes: Changes,
    progress: Progress = no_progress,
) -> Variant:
    """Write every graph and the changes file into the folder with the recipe's name.

    Returns the variant's entry of the manifest.
    """
    total, done = disk_bytes(graphs.values()), 0
    writer.require_space(total)

    def wrote(size: int) -> None:
        nonlocal done
        done += size
        progress(f"writing {recipe.name}", min(done, total), total)

    beside: Written = {}
    for name, model in graphs.items():
        write_graph(model, writer.path(graph_file(recipe, name)), wrote, beside)
    write_changes(writer.path(f"{recipe.name}/{CHANGES_FILE}"), changes)
    files = [name for name in writer.files() if name.startswith(f"{recipe.name}/")]
    return _describe_variant(recipe, graphs, files)


def _describe_variant(
    recipe: Recipe, graphs: Mapping[str, ir.Model], files: Sequence[str]
) -> Variant:
    return Variant(
        device=recipe.device,
        recipe=recipe.name.partition("-")[2],
        graphs={name: graph_file(recipe, name) for name in graphs},
        weight_dtype=recipe.weights,
        compute_dtype=recipe.compute,
        memory_bytes=sum(_memory(model, recipe) for model in graphs.values()),
        files=tuple(sorted(files)),
    )


def graph_file(recipe: Recipe, graph: str) -> str:
    """Where the bundle has a graph."""
    return f"{recipe.name}/{graph}.onnx"


def _memory(model: ir.Model, recipe: Recipe) -> int:
    """Weights in memory; on a CPU the rows of an embedding table are read from the file."""
    table = model.graph.initializers.get(EMBEDDING + WEIGHT)
    if recipe.device == "cuda" or table is None or table.const_value is None:
        return weight_bytes(model)
    return weight_bytes(model) - table.const_value.nbytes
