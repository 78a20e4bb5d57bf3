"""Which primed graphs are of use here: those that this processor's ONNX Runtime laid out itself.

Knows what a device is called. Knows nothing of how its graphs were made.
"""

from __future__ import annotations

import hashlib
import platform

from paligemma_edge.runtime.bundle.bundle import Bundle
from paligemma_edge.runtime.device.device import describe_runtime
from paligemma_edge.runtime.manifest import Primed
from paligemma_edge.runtime.system.linux import instruction_sets, processor_name


def fingerprint() -> str:
    """All that packed weights depend on, for people to compare: processor and ONNX Runtime.

    How many threads there are does not matter.
    """
    offered = hashlib.sha256(" ".join(instruction_sets()).encode()).hexdigest()[:12]
    processor = f"{processor_name()}, {platform.machine()} with instruction sets {offered}"
    return f"{processor}; {describe_runtime()}"


def primed_here(bundle: Bundle, variant: str) -> Primed | None:
    """The graphs that a variant was primed with, where that was done on a device like this one.

    BundleError where their files are not there, or others lie beside them.
    """
    primed = bundle.manifest.primed.get(variant)
    if primed is None or primed.device != fingerprint():
        return None
    bundle.check_graphs(primed)
    return primed


def describe(bundle: Bundle) -> list[str]:
    """A line for each variant that was primed: where, and whether that is of use here."""
    here, files = fingerprint() if bundle.manifest.primed else "", bundle.manifest.files
    lines = []
    for variant, primed in bundle.manifest.primed.items():
        size = sum(files[name].bytes for name in primed.files if name in files) / 1e9
        use = "this device" if primed.device == here else "not this device, so it is not used"
        if variant in bundle.manifest.adapted:
            use = "not used, for the variant has adapters"
        lines.append(f"{variant}, {size:.2f} GB, for {primed.device} ({use})")
    return lines
