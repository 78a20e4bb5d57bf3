"""Adapters come into a bundle and go: whole or not at all, and those that are there stay.

An adapter is one folder; the graphs that take adapters are a folder for each variant, which is
there as long as some adapter changes it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
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
    AdaptedVariant,
    adapted_folder,
    needed_graphs,
)
from paligemma_edge.quantize.transforms.changes import Branch
from paligemma_edge.runtime.bundle.bundle import Bundle
from paligemma_edge.runtime.bundle.folder_writer import FolderWriter, extend_bundle, remove_folder
from paligemma_edge.runtime.errors import BundleError, OptionError, PaliGemmaError
from paligemma_edge.runtime.manifest import SCHEMA_VERSION, LoraInfo, Manifest

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")


def add_adapter(
    bundle_path: str | os.PathLike[str],
    directory: str | os.PathLike[str],
    name: str,
    *,
    variants: Sequence[str] = (),
    overwrite: bool = False,
) -> LoraInfo:
    """Add a LoRA adapter, as PEFT saves it, to variants of a bundle, by default to all of them.

    `overwrite` replaces an adapter of that name, for all variants that it was made for.
    CheckpointError where the adapter is damaged, of another base, or of a kind that has to be
    merged; BundleError where a variant is damaged or older than adapters; OptionError for a name
    or a variant that cannot be; OutputError where the bundle cannot be written.
    """
    bundle = Bundle.open(bundle_path)
    _check_name(bundle, name, overwrite=overwrite)
    targets = [AdaptedVariant.read(bundle, variant) for variant in _chosen(bundle, variants)]
    base = read_base(targets[0].graphs, bundle.manifest.model)
    adapter = read_adapter(Path(directory), base.shapes)
    branches = branches_of(adapter, base)
    facts = _describe(adapter, name, targets, branches)
    sources = [file for target in targets for file in bundle.variant_files(target.variant)]
    with (
        _tidied(bundle.path),
        extend_bundle(bundle, _folder(name), overwrite=overwrite, made_from=sources) as writer,
    ):
        _write_inputs(writer, facts, targets, branches)
        for target in targets:
            _require_graphs(bundle, target, facts, anew=overwrite)
        writer.finish(lambda manifest: _listed(manifest, name, facts))
    return facts


def remove_adapter(bundle_path: str | os.PathLike[str], name: str) -> None:
    """Take an adapter out of a bundle; OptionError where there is none of the name."""
    bundle = Bundle.open(bundle_path)
    if name not in bundle.manifest.adapters:
        found = ", ".join(bundle.manifest.adapters) or "none"
        raise OptionError(f"adapter is {name!r}, bundle {bundle.path} has {found}")
    with _tidied(bundle.path):
        remove_folder(bundle, _folder(name))


def _folder(name: str) -> str:
    return f"adapters/{name}"


def _check_name(bundle: Bundle, name: str, *, overwrite: bool) -> None:
    if not _NAME.fullmatch(name):
        raise OptionError(
            f"adapter is {name!r}, wanted a plain name of at most 100 letters, digits, '-', '_' "
            "and '.', not beginning with '-' or '.'"
        )
    if name in bundle.manifest.adapters and not overwrite:
        raise OptionError(
            f"bundle {bundle.path} has an adapter {name} and it is kept; give --overwrite or "
            "another name"
        )


def _chosen(bundle: Bundle, variants: Sequence[str]) -> list[str]:
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
    targets: Sequence[AdaptedVariant],
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
    facts: LoraInfo,
    targets: Sequence[AdaptedVariant],
    branches: Mapping[str, Branch],
) -> None:
    for target in targets:
        dtype = target.variant.compute_dtype
        inputs: dict[str, Any] = dict(inputs_of(branches, target.changes, dtype))
        writer.require_space(sum(array.nbytes for array in inputs.values()))
        np.savez(writer.path(facts.files[target.name]), **inputs)


def _require_graphs(bundle: Bundle, target: AdaptedVariant, facts: LoraInfo, *, anew: bool) -> None:
    """Let a variant have the adapted graphs of an adapter beside those that it has."""
    known = bundle.manifest.lora_graphs.get(target.name)
    there = set() if known is None else set(known.graphs)
    wanted = set(facts.graphs) & set(target.graphs)
    if anew or wanted - there:
        target.write(bundle, wanted | there)


def _listed(manifest: Manifest, name: str, facts: LoraInfo) -> Manifest:
    adapters = {**manifest.adapters, name: facts}
    listed = dataclasses.replace(manifest, schema_version=SCHEMA_VERSION, adapters=adapters)
    for variant in facts.files:
        adapted = listed.lora_graphs.get(variant)
        if adapted is None or needed_graphs(listed, variant) - set(adapted.graphs):
            raise BundleError(
                f"the adapted graphs of variant {variant} went meanwhile; run the command again"
            )
    return listed


@contextlib.contextmanager
def _tidied(path: Path) -> Iterator[None]:
    """Keep no adapted graph that no adapter changes; one too many does no harm."""
    try:
        yield
    finally:
        with contextlib.suppress(PaliGemmaError):
            _keep_needed(path)


def _keep_needed(path: Path) -> None:
    bundle = Bundle.open(path)
    for variant, adapted in bundle.manifest.lora_graphs.items():
        needed = needed_graphs(bundle.manifest, variant)
        if not needed:
            remove_folder(bundle, adapted_folder(variant))
        elif set(adapted.graphs) - needed:
            AdaptedVariant.read(bundle, variant).write(bundle, needed)
