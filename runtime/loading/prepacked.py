"""Which prepacked graphs can be used here: those that were made on a CPU like this one.

Knows the fingerprint of a device. Knows nothing of how its graphs were made.
"""

from __future__ import annotations

import hashlib
import platform

from paligemma_edge.runtime.bundle.bundle import Bundle
from paligemma_edge.runtime.device.device import describe_runtime
from paligemma_edge.runtime.manifest import Prepacked
from paligemma_edge.runtime.system.linux import instruction_sets, processor_name


def fingerprint() -> str:
    """A readable name of all that packed weights depend on: CPU and ONNX Runtime.

    They do not depend on the number of threads.
    """
    offered = hashlib.sha256(" ".join(instruction_sets()).encode()).hexdigest()[:12]
    processor = f"{processor_name()}, {platform.machine()} with instruction sets {offered}"
    return f"{processor}; {describe_runtime()}"


def prepacked_here(bundle: Bundle, variant: str) -> Prepacked | None:
    """The prepacked graphs of a variant, where they were made on a device like this one.

    BundleError where a file of them is missing, or others are in their folder.
    """
    prepacked = bundle.manifest.prepacked.get(variant)
    if prepacked is None or prepacked.device != fingerprint():
        return None
    bundle.check_graphs(prepacked)
    return prepacked


def describe(bundle: Bundle, *, whole: bool = False) -> list[str]:
    """A line for each prepacked variant: for which device, and whether it is used here.

    The device is named by its processor and the version of ONNX Runtime; `whole` adds the
    instruction sets and the build, which count too.
    """
    here, files = fingerprint() if bundle.manifest.prepacked else "", bundle.manifest.files
    lines = []
    for variant, prepacked in bundle.manifest.prepacked.items():
        size = sum(files[name].bytes for name in prepacked.files if name in files) / 1e9
        use = "this device" if prepacked.device == here else "not this device, so it is not used"
        if variant in bundle.manifest.lora_graphs:
            use = "not used, since the variant has adapters"
        device = prepacked.device if whole else _processor_and_version(prepacked.device)
        lines.append(f"{variant}, {size:.2f} GB, for {device} ({use})")
    return lines


def _processor_and_version(device: str) -> str:
    processor, _, runtime = device.partition("; ")
    return f"{processor.partition(' with ')[0]}; {runtime.partition(' (')[0]}"
