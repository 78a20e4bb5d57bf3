"""A variant of a bundle, open on a device: what the facade and the diagnostics work with.

Reads in the order of the data: the bundle, its variant, the device, the graphs. Knows nothing of
tasks and results.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from dataclasses import dataclass
from typing import Unpack

from paligemma_edge.runtime.bundle.bundle import Bundle
from paligemma_edge.runtime.bundle.digests import comparing
from paligemma_edge.runtime.bundle.local import open_bundle
from paligemma_edge.runtime.engine.cache_pool import KVCachePool
from paligemma_edge.runtime.engine.engine import Engine
from paligemma_edge.runtime.errors import OptionError
from paligemma_edge.runtime.generation.pipeline import Pipeline
from paligemma_edge.runtime.loading.adapters import LoraAdapters
from paligemma_edge.runtime.loading.load_engine import load_engine
from paligemma_edge.runtime.loading.options import (
    LoadOptions,
    cache_plan_for,
    device_for,
    image_reader,
    requested_plan,
)
from paligemma_edge.runtime.loading.prepacked import prepacked_here
from paligemma_edge.runtime.loading.variants import DeviceName, choose_variant
from paligemma_edge.runtime.manifest import Prepacked
from paligemma_edge.runtime.text.tokenizer import PromptEncoder

_LOG = logging.getLogger("paligemma_edge")


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A variant whose files were verified and whose graphs are open."""

    bundle: Bundle
    variant: str
    variant_reason: str  # one sentence
    pipeline: Pipeline  # of the base, without an adapter
    adapters: LoraAdapters
    prepacked: Prepacked | None  # the graphs that are open in place of the variant's own
    verified_files: tuple[str, ...]

    @property
    def engine(self) -> Engine:
        """The open graphs."""
        return self.pipeline.engine

    @property
    def encoder(self) -> PromptEncoder:
        """The bundle's tokenizer."""
        return self.pipeline.encoder

    @property
    def device(self) -> str:
        """The device that the variant is made for."""
        return self.bundle.manifest.variants[self.variant].device

    def with_adapter(self, adapter: str | None) -> Pipeline:
        """What answers with an adapter, or as the base does; OptionError for one not there."""
        if adapter is None:
            return self.pipeline
        engine = self.engine.with_adapter(self.adapters.get(adapter))
        return dataclasses.replace(self.pipeline, engine=engine)


def load_model(
    path: str | os.PathLike[str],
    device: DeviceName = "auto",
    variant: str | None = None,
    **options: Unpack[LoadOptions],
) -> LoadedModel:
    """Verify the files of a variant and open its graphs, or those prepacked for this device.

    In a bundle with adapters its LoRA graphs are opened, which answer as the base too.
    BundleError, DeviceError or OptionError say what is in the way.
    """
    if not isinstance(path, str | os.PathLike):
        raise OptionError(f"the bundle is {path!r}, wanted its path or its name on the Hub")
    bundle = open_bundle(path)
    manifest = bundle.manifest
    requested, images = requested_plan(manifest, options), image_reader(manifest, options)
    name, chosen, reason = choose_variant(manifest, device, variant, requested)
    level = logging.INFO if variant is None else logging.DEBUG  # a name that was given is no news
    _LOG.log(level, "%s: variant %s", bundle.path, reason)
    plan = cache_plan_for(manifest, chosen, options)
    opened = device_for(manifest, chosen, plan, options)
    if (lora_graphs := manifest.lora_graphs.get(name)) is not None:
        bundle.check_graphs(lora_graphs)
    prepacked = None if lora_graphs else prepacked_here(bundle, name)
    graph_files = bundle.variant_files(prepacked or chosen)
    lora_files = bundle.variant_files(lora_graphs) if lora_graphs else ()
    verified = (*graph_files, *lora_files, manifest.tokenizer.file)
    with comparing(bundle, verified) as digests:
        encoder = PromptEncoder(digests.file(manifest.tokenizer.file), manifest.tokenizer)
        engine = load_engine(chosen, opened, digests, prepacked, lora_graphs)
    pipeline = Pipeline(engine, encoder, manifest, KVCachePool(engine, plan), images)
    adapters = LoraAdapters(bundle, name, engine)
    return LoadedModel(bundle, name, reason, pipeline, adapters, prepacked, verified)
