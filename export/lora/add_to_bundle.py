"""Add an adapter to a bundle or remove it: completely or not at all, without changing the others.

An adapter is one folder; the LoRA graphs of a variant are another, which exists as long as some
adapter changes them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paligemma_edge.export.hub.cache import label
from paligemma_edge.export.lora.adapter import PeftAdapter, read_adapter
from paligemma_edge.export.lora.base_layers import read_base
from paligemma_edge.export.lora.graph_inputs import branches_of, inputs_of
from paligemma_edge.export.lora.variant_graphs import (
    GRAPHS,
    LoraVariant,
    lora_folder,
    needed_graphs,
)
from paligemma_edge.quantize.transforms.changes import Branch
from paligemma_edge.runtime.bundle.bundle import Bundle
from paligemma_edge.runtime.bundle.folder_writer import FolderWriter, extend_bundle, remove_folder
from paligemma_edge.runtime.errors import BundleError, OptionError, PaliGemmaError
from paligemma_edge.runtime.manifest import NAME, SCHEMA_VERSION, LoraInfo, Manifest
from paligemma_edge.runtime.progress import Progress, no_progress


def add_adapter(
    bundle_path: str | os.PathLike[str],
    directory: str | os.PathLike[str],
    name: str,
    *,
    variants: Sequence[str] = (),
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> LoraInfo:
    """Add a LoRA adapter, as PEFT saves it, to a bundle, so that each call can switch it on.

    The variants' weights stay as they are: the adapter's A and B become inputs of their graphs.
    Either the whole adapter is added, or the bundle is not changed.

    Args:
        bundle_path: The bundle's directory.
        directory: The adapter's directory, with `adapter_config.json` and
            `adapter_model.safetensors`.
        name: The adapter's name in the bundle: letters, digits, '-', '_' and '.'.
        variants: Names of the variants to add it to; default: all of the bundle.
        overwrite: Replace an adapter of that name, in every variant that has it.
        progress: Called before each variant.

    Returns:
        The adapter's entry of the manifest: source, rank, graphs, and its file for each
        variant.

    Raises:
        CheckpointError: The adapter is damaged, belongs to another base, or is of a kind that can
            only be merged (DoRA, biases, whole tensors, convolutions).
        BundleError: A variant is damaged, or has no record of how its weights were changed.
        OptionError: A name or a variant is not valid.
        OutputError: The bundle cannot be written.

    Example:
        >>> add_adapter("mix.bundle", "cats-lora", "cats")
        >>> PaliGemma("mix.bundle").detect("photo.jpg", "cat", adapter="cats")
    """
    bundle = Bundle.open(bundle_path)
    _check_name(bundle, name, overwrite=overwrite)
    progress("reading the base and the adapter", 0, 1)
    targets = [LoraVariant.read(bundle, variant) for variant in _selected(bundle, variants)]
    base = read_base(targets[0].graphs, bundle.manifest.model)
    adapter = read_adapter(Path(directory), base.shapes)
    branches = branches_of(adapter, base)
    info = _describe(adapter, name, targets, branches)
    sources = [file for target in targets for file in bundle.variant_files(target.variant)]
    with (
        _tidy_afterwards(bundle.path),
        extend_bundle(bundle, _folder(name), overwrite=overwrite, made_from=sources) as writer,
    ):
        _write_inputs(writer, info, targets, branches)
        for number, target in enumerate(targets):
            progress("writing graphs", number, len(targets))
            _require_graphs(bundle, target, info, rebuild=overwrite)
        writer.finish(lambda manifest: _extend_manifest(manifest, name, info))
    return info


def remove_adapter(bundle_path: str | os.PathLike[str], name: str) -> None:
    """Remove an adapter from a bundle, with the graphs that no other adapter needs.

    What a removal that was killed left behind is removed too.

    Args:
        bundle_path: The bundle's directory.
        name: The adapter's name in the bundle.

    Raises:
        OptionError: The bundle has no adapter of that name.
        BundleError: The bundle is damaged.
        OutputError: The bundle cannot be written.

    Example:
        >>> remove_adapter("mix.bundle", "cats")
    """
    bundle = Bundle.open(bundle_path)
    if name not in bundle.manifest.adapters and not _has_remains(bundle, name):
        names = ", ".join(bundle.manifest.adapters) or "none"
        raise OptionError(
            f"adapter is {name!r}, which bundle {bundle.path} does not have or no longer has; it "
            f"has {names}"
        )
    with _tidy_afterwards(bundle.path):
        remove_folder(bundle, _folder(name))


def _has_remains(bundle: Bundle, name: str) -> bool:
    """Whether a process that was killed has left files of an adapter, or graphs for none."""
    if NAME.fullmatch(name) and os.path.lexists(bundle.path / _folder(name)):
        return True
    return bool(_without_need(bundle))


def _without_need(bundle: Bundle) -> list[str]:
    """Variants whose LoRA graphs no adapter needs, listed or left behind."""
    return [
        variant
        for variant in bundle.manifest.variants
        if not needed_graphs(bundle.manifest, variant)
        and (
            variant in bundle.manifest.lora_graphs or (bundle.path / lora_folder(variant)).is_dir()
        )
    ]


def _folder(name: str) -> str:
    return f"adapters/{name}"


def _check_name(bundle: Bundle, name: str, *, overwrite: bool) -> None:
    if not NAME.fullmatch(name):
        raise OptionError(
            f"adapter is {name!r}, wanted a plain name of at most 100 letters, digits, '-', '_' "
            "and '.', not beginning with '-' or '.'"
        )
    if name in bundle.manifest.adapters and not overwrite:
        raise OptionError(
            f"bundle {bundle.path} already has an adapter {name}; give --overwrite to replace "
            "it, or another name"
        )


def _selected(bundle: Bundle, variants: Sequence[str]) -> list[str]:
    known = bundle.manifest.variants
    for variant in variants:
        if variant not in known:
            raise OptionError(
                f"variant is {variant!r}, bundle {bundle.path} has {', '.join(known)}"
            )
    return list(dict.fromkeys(variants or known))


def _describe(
    adapter: PeftAdapter,
    name: str,
    targets: Sequence[LoraVariant],
    branches: Mapping[str, Branch],
) -> LoraInfo:
    changed = {graph for target in targets for graph in target.changed_by(branches)}
    return LoraInfo(
        source=label(adapter.directory),
        rank=max(layer.rank for layer in adapter.layers.values()),
        graphs=tuple(graph for graph in GRAPHS if graph in changed),
        files={target.name: f"{_folder(name)}/{target.name}.npz" for target in targets},
    )


def _write_inputs(
    writer: FolderWriter,
    info: LoraInfo,
    targets: Sequence[LoraVariant],
    branches: Mapping[str, Branch],
) -> None:
    for target in targets:
        dtype = target.variant.compute_dtype
        inputs: dict[str, Any] = dict(inputs_of(branches, target.changes, dtype))
        writer.require_space(sum(array.nbytes for array in inputs.values()))
        np.savez(writer.path(info.files[target.name]), **inputs)


def _require_graphs(bundle: Bundle, target: LoraVariant, info: LoraInfo, *, rebuild: bool) -> None:
    """Write the LoRA graphs that an adapter needs, if a variant lacks any or with `rebuild`."""
    known = bundle.manifest.lora_graphs.get(target.name)
    existing = set() if known is None else set(known.graphs)
    wanted = set(info.graphs) & set(target.graphs)
    if rebuild or wanted - existing:
        target.write(bundle, wanted | existing)


def _extend_manifest(manifest: Manifest, name: str, info: LoraInfo) -> Manifest:
    adapters = {**manifest.adapters, name: info}
    extended = dataclasses.replace(manifest, schema_version=SCHEMA_VERSION, adapters=adapters)
    for variant in info.files:
        known = extended.lora_graphs.get(variant)
        if known is None or needed_graphs(extended, variant) - set(known.graphs):
            raise BundleError(
                f"the LoRA graphs of variant {variant} were removed meanwhile; "
                "run the command again"
            )
    return extended


@contextlib.contextmanager
def _tidy_afterwards(path: Path) -> Iterator[None]:
    """Remove LoRA graphs that no adapter needs; one too many does no harm."""
    try:
        yield
    finally:
        with contextlib.suppress(PaliGemmaError):
            _remove_unneeded(path)


def _remove_unneeded(path: Path) -> None:
    bundle = Bundle.open(path)
    for variant in _without_need(bundle):
        remove_folder(bundle, lora_folder(variant))
    for variant, known in bundle.manifest.lora_graphs.items():
        needed = needed_graphs(bundle.manifest, variant)
        if needed and set(known.graphs) - needed:
            LoraVariant.read(bundle, variant).write(bundle, needed)
