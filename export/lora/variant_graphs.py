"""A bundle's variant and its LoRA graphs: copies of its graphs that take an adapter as inputs.

Reads graphs, and how the weights were changed; loads no weight.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from paligemma_edge.quantize.graphs.read_graph import read_graph
from paligemma_edge.quantize.recipes.recipe import LOSSLESS_RECIPE
from paligemma_edge.quantize.schemes.lora_branches import add_branches, layer_of
from paligemma_edge.quantize.schemes.products import products
from paligemma_edge.quantize.transforms.changes import Changes, has_shift
from paligemma_edge.quantize.transforms.changes_file import CHANGES_FILE, read_changes
from paligemma_edge.runtime import contract
from paligemma_edge.runtime.bundle.bundle import Bundle
from paligemma_edge.runtime.bundle.folder_writer import extend_bundle
from paligemma_edge.runtime.contract import ComputeDtype
from paligemma_edge.runtime.errors import BundleError
from paligemma_edge.runtime.manifest import LoraGraphs, Manifest, Variant

# Graphs that have layers, in the order of the data.
GRAPHS = (contract.VISION_ENCODER, contract.PROJECTOR, contract.PREFILL, contract.DECODER)
_DTYPES: Mapping[ComputeDtype, ir.DataType] = {
    "float32": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16,
}


@dataclass(frozen=True)
class LoraVariant:
    """A variant that an adapter is added to."""

    name: str
    variant: Variant
    graphs: Mapping[str, ir.Model]  # those that have layers
    changes: Changes

    @classmethod
    def read(cls, bundle: Bundle, name: str) -> LoraVariant:
        """Read a variant of the bundle, digests compared.

        BundleError where a file is damaged, or where it is not known how its weights were changed.
        """
        variant = bundle.manifest.variants[name]
        files = {graph: variant.graphs[graph] for graph in GRAPHS if graph in variant.graphs}
        bundle.verify(files.values())
        graphs = {graph: read_graph(bundle, file) for graph, file in files.items()}
        return cls(name, variant, graphs, _read_changes(bundle, name, variant))

    def changed_by(self, layers: Collection[str]) -> list[str]:
        """The graphs that have one of these layers."""
        return [graph for graph, model in self.graphs.items() if _layers(model) & set(layers)]

    def lora_graph(self, graph: str) -> bytes:
        """The LoRA graph of a graph; its weights stay in the variant's folder."""
        model = self.graphs[graph].clone()
        shifted = [layer for layer, changes in self.changes.items() if has_shift(changes)]
        add_branches(model, _DTYPES[self.variant.compute_dtype], shifted)
        return ir.to_proto(model).SerializeToString()

    def write(self, bundle: Bundle, graphs: Collection[str]) -> None:
        """Write these LoRA graphs of the variant to the bundle, in place of those it had."""
        folder, sources = lora_folder(self.name), bundle.variant_files(self.variant)
        names = {graph: f"{folder}/{graph}.onnx" for graph in self.graphs if graph in graphs}
        written = LoraGraphs(graphs=names, files=tuple(names.values()))
        with extend_bundle(bundle, folder, overwrite=True, made_from=sources) as writer:
            for graph, file in names.items():
                writer.write(file, self.lora_graph(graph))
            writer.finish(
                lambda m: dataclasses.replace(m, lora_graphs={**m.lora_graphs, self.name: written})
            )


def lora_folder(variant: str) -> str:
    """The folder of a variant's LoRA graphs."""
    return f"lora_graphs/{variant}"


def needed_graphs(manifest: Manifest, variant: str) -> set[str]:
    """The graphs of a variant that some adapter of the bundle changes."""
    adapters = [info for info in manifest.adapters.values() if variant in info.files]
    changed = {graph for info in adapters for graph in info.graphs}
    return changed & set(manifest.variants[variant].graphs)


def _layers(model: ir.Model) -> set[str]:
    return {layer_of(product) for product in products(model)}


def _read_changes(bundle: Bundle, name: str, variant: Variant) -> Changes:
    if variant.recipe == LOSSLESS_RECIPE:
        return {}
    file = next((file for file in variant.files if file.endswith(f"/{CHANGES_FILE}")), None)
    if file is None:
        raise BundleError(
            f"variant {name} of bundle {bundle.path} has no {CHANGES_FILE}, so it is not known how "
            "its weights were changed; quantize it again with --overwrite, or name other variants "
            "with --variant"
        )
    bundle.verify([file])
    return read_changes(bundle.file(file))
