"""Which variant of a bundle is used, and why: the named one, the marked one, or the best that fits.

`best_variant` is a pure function of the manifest and the machine; `choose_variant` looks at this
machine. Opens nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple, get_args

from paligemma_edge.runtime.device.cuda.check import find_gpu
from paligemma_edge.runtime.device.device import check_present, present_devices
from paligemma_edge.runtime.device.memory import DeviceKind
from paligemma_edge.runtime.engine.cache_plan import CachePlan
from paligemma_edge.runtime.errors import BundleError, DeviceError, OptionError
from paligemma_edge.runtime.loading.memory_estimate import estimate_memory
from paligemma_edge.runtime.manifest import Manifest, Variant
from paligemma_edge.runtime.suggestion import suggestion
from paligemma_edge.runtime.system.linux import machine_memory

DeviceName = Literal["auto", "cpu", "cuda"]
# Bytes that a device has in all; None where that is not known.
MemoryOf = Callable[[DeviceKind], int | None]

# Variants of the shipped recipes, the best first; others come after them, the lossless one last.
_PREFERRED: Mapping[DeviceKind, Sequence[str]] = {
    "cpu": ("cpu-int8", "cpu-fast", "cpu-int4"),
    "cuda": ("cuda-bf16", "cuda-fp16", "cuda-int8", "cuda-int4"),
}
_LOSSLESS = "cpu-fp32"


class VariantChoice(NamedTuple):
    """A variant of a bundle, and one sentence that says why it was chosen."""

    name: str
    variant: Variant
    reason: str


def choose_variant(
    manifest: Manifest,
    device: DeviceName = "auto",
    variant: str | None = None,
    plan: CachePlan | None = None,
) -> VariantChoice:
    """The named variant, or the one for this machine when it is opened for a plan.

    BundleError where the bundle has none for the device, DeviceError where the device is missing,
    OptionError for a name that is not there.
    """
    if device not in get_args(DeviceName):
        raise OptionError(f"device is {device!r}, wanted one of {', '.join(get_args(DeviceName))}")
    if variant is not None:
        return _named(manifest, device, variant)
    if device != "auto":
        check_present(device)
    devices = present_devices() if device == "auto" else (device,)
    return best_variant(manifest, devices, device_memory, plan)


def best_variant(
    manifest: Manifest,
    devices: Sequence[DeviceKind],
    memory_of: MemoryOf,
    plan: CachePlan | None = None,
) -> VariantChoice:
    """The variant for the first of the devices that has any.

    That which the bundle's maker marked as its default; else the most preferred one whose estimated
    memory the device has; else the smallest. BundleError where no device has a variant.
    """
    for device in devices:
        names = [name for name, one in manifest.variants.items() if one.device == device]
        if names:
            return _best(manifest, device, names, memory_of, plan)
    made = ", ".join(f"{key} for {one.device}" for key, one in manifest.variants.items())
    raise BundleError(
        f"the bundle has no variant for {' or '.join(devices)}, only {made or 'none at all'}; "
        "choose a device that it was made for"
    )


def device_memory(device: DeviceKind) -> int | None:
    """Bytes that this machine has for a device: those of its GPU, or what a process may hold."""
    if device == "cpu":
        return machine_memory()
    try:
        return find_gpu().total_bytes
    except DeviceError:  # said with its reason when the variant is opened
        return None


def _named(manifest: Manifest, device: str, name: str) -> VariantChoice:
    named = manifest.variants.get(name) if isinstance(name, str) else None
    if named is None:
        raise OptionError(
            f"variant is {name!r}, the bundle has {', '.join(manifest.variants)}"
            f"{suggestion(name, manifest.variants)}"
        )
    if device not in ("auto", named.device):
        raise OptionError(
            f"variant {name} is made for {named.device}, device {device} was requested; "
            "leave one of the two out"
        )
    return VariantChoice(name, named, f"{name} was asked for")


def _best(
    manifest: Manifest,
    device: DeviceKind,
    names: Sequence[str],
    memory_of: MemoryOf,
    plan: CachePlan | None,
) -> VariantChoice:
    def choice(name: str, reason: str) -> VariantChoice:
        return VariantChoice(name, manifest.variants[name], f"{name} {reason}")

    marked = manifest.default_variant
    if marked is not None and marked in names:
        return choice(marked, "is the default that the bundle's maker marked")
    if len(names) == 1:
        return choice(names[0], f"is the only variant for {device}")
    plan = plan or CachePlan.complete(manifest.model, 1, None)
    needs = {n: estimate_memory(manifest, manifest.variants[n], plan).total for n in names}
    ordered, memory = sorted(names, key=lambda name: _rank(device, name)), memory_of(device)
    if memory is None:
        return choice(ordered[0], f"is the preferred one of {len(names)} variants for {device}")
    fitting = [name for name in ordered if needs[name] <= memory]
    if fitting:
        sizes = f"about {_gigabytes(needs[fitting[0]])} of {_gigabytes(memory)}"
        return choice(
            fitting[0],
            f"is the preferred one of {len(names)} variants for {device} that fits its memory: "
            f"{sizes}",
        )
    smallest = min(names, key=lambda name: needs[name])
    return choice(
        smallest,
        f"is the smallest variant for {device} and may not fit its memory: about "
        f"{_gigabytes(needs[smallest])}, of {_gigabytes(memory)} in all",
    )


def _rank(device: DeviceKind, name: str) -> int:
    preferred = _PREFERRED[device]
    if name in preferred:
        return preferred.index(name)
    return len(preferred) + (name == _LOSSLESS)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
