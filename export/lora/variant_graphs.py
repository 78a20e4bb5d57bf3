"""A variant of a bundle to which adapters are added: its graphs, and how its weights were changed.

Reads what lies beside the weights, and no weight.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from paligemma_edge.quantize.recipes.recipe import LOSSLESS
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
class AdaptedVariant:
    """What is known of a variant before an adapter is added to it."""

    name: str
    variant: Variant
    graphs: Mapping[str, ir.Model]  # those that have layers
    changes: Changes

    @classmethod
    def read(cls, bundle: Bundle, name: str) -> AdaptedVariant:
        """Read a variant of the bundle, digests compared.

        BundleError where a file is damaged, or where nothing tells how its weights were changed.
        """
        variant = bundle.manifest.variants[name]
        files = {graph: variant.graphs[graph] for graph in GRAPHS if graph in variant.graphs}
        bundle.verify(files.values())
        graphs = {graph: ir.load(bundle.file(file)) for graph, file in files.items()}
        return cls(name, variant, graphs, _read_changes(bundle, name, variant))

    def changed_by(self, layers: Collection[str]) -> list[str]:
        """The graphs that have one of these layers."""
        return [graph for graph, model in self.graphs.items() if _layers(model) & set(layers)]

    def with_adapter(self, graph: str) -> bytes:
        """A graph with branches; its weights are named where they lie, in the variant's folder."""
        model = self.graphs[graph].clone()
        shifted = [layer for layer, changes in self.changes.items() if has_shift(changes)]
        add_branches(model, _DTYPES[self.variant.compute_dtype], shifted)
        return ir.to_proto(model).SerializeToString()

    def write(self, bundle: Bundle, graphs: Collection[str]) -> None:
        """Let the bundle have these adapted graphs of the variant and no others of it."""
        folder, sources = adapted_folder(self.name), bundle.variant_files(self.variant)
        names = {graph: f"{folder}/{graph}.onnx" for graph in self.graphs if graph in graphs}
        adapted = LoraGraphs(graphs=names, files=tuple(names.values()))
        with extend_bundle(bundle, folder, overwrite=True, made_from=sources) as writer:
            for graph, file in names.items():
                writer.write(file, self.with_adapter(graph))
            writer.finish(
                lambda m: dataclasses.replace(m, lora_graphs={**m.lora_graphs, self.name: adapted})
            )


def adapted_folder(variant: str) -> str:
    """Where the adapted graphs of a variant lie."""
    return f"adapted/{variant}"


def needed_graphs(manifest: Manifest, variant: str) -> set[str]:
    """The graphs of a variant that some adapter of the bundle changes."""
    adapters = [facts for facts in manifest.adapters.values() if variant in facts.files]
    changed = {graph for facts in adapters for graph in facts.graphs}
    return changed & set(manifest.variants[variant].graphs)


def _layers(model: ir.Model) -> set[str]:
    return {layer_of(product) for product in products(model)}


def _read_changes(bundle: Bundle, name: str, variant: Variant) -> Changes:
    if variant.recipe == LOSSLESS:
        return {}
    file = next((file for file in variant.files if file.endswith(f"/{CHANGES_FILE}")), None)
    if file is None:
        raise BundleError(
            f"variant {name} of bundle {bundle.path} was made by an earlier release and has no "
            f"{CHANGES_FILE}, so that nothing tells how its weights were changed; quantize it "
            "again with --overwrite, or name other variants with --variant"
        )
    bundle.verify([file])
    return read_changes(bundle.file(file))
