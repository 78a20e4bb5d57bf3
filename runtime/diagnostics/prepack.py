"""Prepacks a variant on the device that runs it: saves its graphs as ONNX Runtime laid them out.

A prepacked graph is optimized already, and its packed weights are mapped from a file in place of
memory of the process. It is made from verified files only and is of use on this device alone:
ONNX Runtime packs the weights once more when it opens one, and refuses it where they differ.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable

from paligemma_edge.runtime.bundle.bundle import Bundle
from paligemma_edge.runtime.bundle.folder_writer import FolderWriter, extend_bundle, remove_folder
from paligemma_edge.runtime.device.device import Device, open_device
from paligemma_edge.runtime.errors import OptionError
from paligemma_edge.runtime.loading.prepacked import fingerprint
from paligemma_edge.runtime.loading.variants import DeviceName, choose_variant
from paligemma_edge.runtime.manifest import Manifest, Prepacked, Variant
from paligemma_edge.runtime.progress import Progress, no_progress


def prepack(
    bundle_path: str | os.PathLike[str],
    variant: str | None = None,
    *,
    progress: Progress = no_progress,
) -> str:
    """Prepack a variant for this processor, in place of what it was prepacked with → its name.

    By default the variant that is used on this processor. `progress` is called before each graph.
    BundleError where a file is damaged, OutputError where the disk is full, OptionError where
    the variant is not for the processor: nothing is changed.
    """
    bundle = Bundle.open(bundle_path)
    device: DeviceName = "cpu" if variant is None else "auto"
    name, chosen, _ = choose_variant(bundle.manifest, device, variant)
    if chosen.device != "cpu":
        raise OptionError(
            f"variant {name} is made for {chosen.device}, weights are packed for the processor "
            "alone; give a variant for cpu"
        )
    if name in bundle.manifest.lora_graphs:
        raise OptionError(
            f"variant {name} has adapters, and its LoRA graphs are opened in place of prepacked "
            "ones; remove the adapters, or prepack another variant"
        )
    sources = bundle.variant_files(chosen)
    bundle.verify(sources)
    folder = _folder(name)
    with extend_bundle(bundle, folder, overwrite=True, made_from=sources) as writer:
        writer.require_space(2 * chosen.memory_bytes)  # as they are, and packed
        graphs = _save(bundle, chosen, folder, writer, progress)
        writer.finish(_listing(name, graphs, tuple(writer.files())))
    return name


def remove_prepacked(bundle_path: str | os.PathLike[str], variant: str | None = None) -> list[str]:
    """Remove what one variant, or each, was prepacked with → their names.

    What a removal that was killed left behind is removed too.
    """
    bundle = Bundle.open(bundle_path)
    manifest = bundle.manifest
    remains = (name for name in manifest.variants if (bundle.path / _folder(name)).is_dir())
    prepacked = list(dict.fromkeys((*manifest.prepacked, *remains)))
    if variant is not None and variant not in prepacked:
        raise OptionError(f"variant is {variant!r}, prepacked are {', '.join(prepacked) or 'none'}")
    names = prepacked if variant is None else [variant]
    for name in names:
        remove_folder(bundle, _folder(name))
    return names


def _folder(variant: str) -> str:
    return f"prepacked/{variant}"


def _save(
    bundle: Bundle,
    variant: Variant,
    folder: str,
    writer: FolderWriter,
    progress: Progress,
) -> dict[str, str]:
    device = open_device("cpu")
    graphs = {graph: f"{folder}/{graph}.onnx" for graph in variant.graphs}
    for number, (graph, name) in enumerate(graphs.items()):
        progress("packing weights", number, len(graphs))
        _save_one(device, bundle, variant.graphs[graph], writer, name)
    return graphs


def _save_one(device: Device, bundle: Bundle, source: str, writer: FolderWriter, name: str) -> None:
    target = writer.path(name)
    device.save_session(bundle.file(source), target)
    device.open_session(target, optimized=True)  # a disk that filled up is an error now, not later


def _listing(
    variant: str, graphs: dict[str, str], files: tuple[str, ...]
) -> Callable[[Manifest], Manifest]:
    prepacked = Prepacked(device=fingerprint(), graphs=graphs, files=files)

    def listed(manifest: Manifest) -> Manifest:
        return dataclasses.replace(manifest, prepacked={**manifest.prepacked, variant: prepacked})

    return listed
