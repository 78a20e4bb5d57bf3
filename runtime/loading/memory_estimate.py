"""How much memory a variant will take on its device, told before it is tried.

Knows what the manifest says of sizes. What is not weights or keys and values is an estimate: the
largest values that live at once while a prompt is read, and what a device takes for itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from paligemma_edge.runtime.contract import itemsize
from paligemma_edge.runtime.engine.cache_plan import CachePlan
from paligemma_edge.runtime.manifest import Manifest, Variant

# Python, NumPy and ONNX Runtime with their libraries; on a GPU a CUDA context, the kernels and
# the work spaces of cuBLAS and cuDNN.
_DEVICE_ITSELF: Mapping[str, int] = {"cpu": 150_000_000, "cuda": 600_000_000}
# ONNX Runtime holds a part of the weights twice while it packs them for a processor: peaks of
# 2.30 GB (`cpu-int4` of a PaliGemma-3B-224) and 5.05 GB (`cpu-int8` of one at 896) were measured
# where this gives 2.35 and 5.19.
_PACKED: Mapping[str, float] = {"cpu": 1.2, "cuda": 1.0}
# A prompt's widest values at once, in widths of the decoder: gate, up and their product, each up
# to eight times as wide, beside the stream, the norms and attention.
_LIVE_WIDTHS = 40


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes of memory: of the process on a processor, of the GPU on CUDA."""

    weights: int
    cache: int  # keys and values of all slots
    workspace: int
    device: int  # what the device takes for itself

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.cache + self.workspace + self.device

    def describe(self) -> str:
        """The sum and its parts, in gigabytes."""
        parts = (
            f"{self.weights / 1e9:.2f} weights",
            f"{self.cache / 1e9:.2f} keys and values",
            f"{(self.workspace + self.device) / 1e9:.2f} for the rest",
        )
        return f"about {self.total / 1e9:.2f} GB: {', '.join(parts)}"


def _adapters(manifest: Manifest, variant: Variant) -> int:
    """Bytes of the adapters of a variant, all of which may come into use."""
    name = f"{variant.device}-{variant.recipe}"
    files = [config.files[name] for config in manifest.adapters.values() if name in config.files]
    return sum(manifest.files[file].bytes for file in files)


def estimate_memory(manifest: Manifest, variant: Variant, plan: CachePlan) -> MemoryEstimate:
    """What a variant takes when it is opened for a plan."""
    config = manifest.model
    cache = plan.max_batch * config.cache_bytes(plan.max_length, variant.compute_dtype)
    if variant.device == "cuda":  # ONNX Runtime takes memory for callers by powers of two there
        cache = 1 << (cache - 1).bit_length()
    width = config.hidden_size * itemsize(variant.compute_dtype)
    logits = plan.max_batch * config.vocab_size * itemsize("float32")
    return MemoryEstimate(
        weights=int(variant.memory_bytes * _PACKED[variant.device]) + _adapters(manifest, variant),
        cache=cache,
        workspace=plan.max_length * width * _LIVE_WIDTHS + logits,
        device=_DEVICE_ITSELF[variant.device],
    )
