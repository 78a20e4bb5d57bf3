"""How much memory a variant will take on its device, estimated before it is opened.

Knows the sizes in the manifest. Everything besides weights and keys and values is an estimate: the
largest values that are alive at once in a prefill, and the device's own memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from paligemma_edge.runtime.contract import itemsize
from paligemma_edge.runtime.engine.cache_plan import CachePlan
from paligemma_edge.runtime.manifest import Manifest, Variant

# Python, NumPy and ONNX Runtime with their libraries; on a GPU a CUDA context, the kernels and
# the work spaces of cuBLAS and cuDNN.
_DEVICE_OVERHEAD: Mapping[str, int] = {"cpu": 150_000_000, "cuda": 600_000_000}
# ONNX Runtime holds some of the weights twice while it packs them for a CPU: peaks of 2.30 GB
# (`cpu-int4` of a PaliGemma-3B-224) and 5.05 GB (`cpu-int8` of one at 896) were measured where
# this gives 2.35 and 5.19.
_PACKED: Mapping[str, float] = {"cpu": 1.2, "cuda": 1.0}
# Values that are alive at once in a prefill, in widths of the decoder: gate, up and their product,
# each up to eight times as wide, and the residual stream, the norms and attention.
_LIVE_WIDTHS = 40


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes of memory: of the process on a CPU, of the GPU on CUDA."""

    weights: int
    cache: int  # keys and values of all slots
    workspace: int
    device: int  # taken by the device itself

    @property
    def total(self) -> int:
        """The sum."""
        return self.weights + self.cache + self.workspace + self.device

    def describe(self) -> str:
        """The sum and its terms, in gigabytes."""
        terms = (
            f"{self.weights / 1e9:.2f} weights",
            f"{self.cache / 1e9:.2f} keys and values",
            f"{(self.workspace + self.device) / 1e9:.2f} for the rest",
        )
        return f"about {self.total / 1e9:.2f} GB: {', '.join(terms)}"


def _adapters(manifest: Manifest, variant: Variant) -> int:
    """Bytes of a variant's adapters, all of which may be used."""
    name = f"{variant.device}-{variant.recipe}"
    files = [config.files[name] for config in manifest.adapters.values() if name in config.files]
    return sum(manifest.files[file].bytes for file in files)


def estimate_memory(manifest: Manifest, variant: Variant, plan: CachePlan) -> MemoryEstimate:
    """The memory that a variant takes when it is opened for a plan."""
    config = manifest.model
    cache = plan.max_batch_size * config.cache_bytes(plan.max_length, variant.compute_dtype)
    if variant.device == "cuda":  # ONNX Runtime allocates by powers of two there
        cache = 1 << (cache - 1).bit_length()
    width = config.hidden_size * itemsize(variant.compute_dtype)
    logits = plan.max_batch_size * config.vocab_size * itemsize("float32")
    return MemoryEstimate(
        weights=int(variant.memory_bytes * _PACKED[variant.device]) + _adapters(manifest, variant),
        cache=cache,
        workspace=plan.max_length * width * _LIVE_WIDTHS + logits,
        device=_DEVICE_OVERHEAD[variant.device],
    )
