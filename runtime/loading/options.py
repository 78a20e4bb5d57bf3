"""The options of loading a model: the plan of its memory, and a device with enough memory."""

from __future__ import annotations

from typing import TypedDict

from paligemma_edge.runtime.device.device import Device, open_device
from paligemma_edge.runtime.engine.cache_plan import CachePlan
from paligemma_edge.runtime.errors import DeviceError, OptionError
from paligemma_edge.runtime.images.batch import ImageReader
from paligemma_edge.runtime.images.load import MAX_PIXELS
from paligemma_edge.runtime.loading.memory_estimate import MemoryEstimate, estimate_memory
from paligemma_edge.runtime.manifest import Manifest, Variant
from paligemma_edge.runtime.validation import check_bytes, check_flag, check_pixels


class LoadOptions(TypedDict, total=False):
    """Options of `PaliGemma` in addition to device and variant."""

    threads: int | None
    max_batch_size: int | None
    max_length: int | None
    memory_limit: int | str | None  # bytes, or a text with a unit
    cuda_graph: bool
    max_pixels: int | str | None  # of an image, as a number or a text such as "50M"


def requested_plan(manifest: Manifest, options: LoadOptions) -> CachePlan | None:
    """The slots that are asked for, whatever the variant; OptionError for unusable values."""
    return CachePlan.of(manifest.model, options.get("max_batch_size"), options.get("max_length"))


def image_reader(manifest: Manifest, options: LoadOptions) -> ImageReader:
    """How images are read; OptionError for an unusable limit."""
    limit = options.get("max_pixels")
    most = MAX_PIXELS if limit is None else check_pixels("max_pixels", limit)
    return ImageReader(manifest.image, most)


def cache_plan_for(manifest: Manifest, variant: Variant, options: LoadOptions) -> CachePlan | None:
    """The slots to allocate at load; None for none. OptionError for unusable values.

    CUDA graphs need fixed addresses, so with `cuda_graph` there is always a plan.
    """
    plan = requested_plan(manifest, options)
    if not check_flag("cuda_graph", options.get("cuda_graph", False)):
        return plan
    if variant.device != "cuda":
        raise OptionError(
            f"cuda_graph records steps on a GPU, variant {variant.device}-{variant.recipe} is "
            "made for a CPU; leave it out or choose a variant for cuda"
        )
    return plan or CachePlan.complete(manifest.model, None, None)


def device_for(
    manifest: Manifest, variant: Variant, plan: CachePlan | None, options: LoadOptions
) -> Device:
    """The device of a variant, with enough memory for it.

    DeviceError where there is no device or too little memory, OptionError for an unusable limit.
    """
    threads, memory_limit = options.get("threads"), options.get("memory_limit")
    limit = None if memory_limit is None else check_bytes("memory_limit", memory_limit)
    if variant.device == "cpu":
        if limit is not None:
            raise OptionError("memory_limit is about a GPU's memory; leave it out on a CPU")
        return open_device("cpu", threads)
    needed = estimate_memory(manifest, variant, plan or CachePlan.complete(manifest.model, 1, None))
    workspace = None
    if limit is not None:
        _require(needed, needed.total, limit, "the memory limit", "raise the limit")
        workspace = limit - needed.weights - needed.cache - needed.device
    cuda_graph = check_flag("cuda_graph", options.get("cuda_graph", False))
    device = open_device("cuda", threads, memory_limit=workspace, cuda_graph=cuda_graph)
    if (gpu := device.gpu) is not None:
        free = f"what is free of the {gpu.total_bytes / 1e9:.1f} GB of {gpu.name}"
        # It was measured in a CUDA context, which had taken most of `needed.device` already.
        least = needed.total - needed.device
        _require(needed, least, gpu.free_bytes, free, "end what else uses the GPU")
    return device


def _require(needed: MemoryEstimate, least: int, actual: int, what: str, else_: str) -> None:
    if least > actual:
        raise DeviceError(
            f"the variant needs {needed.describe()}; {what} is {actual / 1e9:.2f} GB; take a "
            f"smaller variant, lower max_batch_size or max_length, or {else_}"
        )
