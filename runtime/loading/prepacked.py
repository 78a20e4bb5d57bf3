"""Which prepacked graphs are of use here: those that this processor's ONNX Runtime laid out itself.

Knows what a device is called. Knows nothing of how its graphs were made.
"""

from __future__ import annotations

import hashlib
import platform

from paligemma_edge.runtime.bundle.bundle import Bundle
from paligemma_edge.runtime.device.device import describe_runtime
from paligemma_edge.runtime.manifest import Prepacked
from paligemma_edge.runtime.system.linux import instruction_sets, processor_name


def fingerprint() -> str:
    """All that packed weights depend on, for people to compare: processor and ONNX Runtime.

    How many threads there are does not matter.
    """
    offered = hashlib.sha256(" ".join(instruction_sets()).encode()).hexdigest()[:12]
    processor = f"{processor_name()}, {platform.machine()} with instruction sets {offered}"
    return f"{processor}; {describe_runtime()}"


def prepacked_here(bundle: Bundle, variant: str) -> Prepacked | None:
    """The graphs that a variant was prepacked with, where that was done on a device like this one.

    BundleError where their files are not there, or others lie beside them.
    """
    prepacked = bundle.manifest.prepacked.get(variant)
    if prepacked is None or prepacked.device != fingerprint():
        return None
    bundle.check_graphs(prepacked)
    return prepacked


def describe(bundle: Bundle) -> list[str]:
    """A line for each variant that was prepacked: where, and whether that is of use here."""
    here, files = fingerprint() if bundle.manifest.prepacked else "", bundle.manifest.files
    lines = []
    for variant, prepacked in bundle.manifest.prepacked.items():
        size = sum(files[name].bytes for name in prepacked.files if name in files) / 1e9
        use = "this device" if prepacked.device == here else "not this device, so it is not used"
        if variant in bundle.manifest.lora_graphs:
            use = "not used, for the variant has adapters"
        lines.append(f"{variant}, {size:.2f} GB, for {prepacked.device} ({use})")
    return lines
