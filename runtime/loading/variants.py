"""Which variant of a bundle is used, and why: the named one, the marked one, or the best that fits.

`best_variant` is a pure function of the manifest and the machine; `choose_variant` looks at this
machine. Opens nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class DeviceLimits:
    """What a device of this machine has, as far as it decides between variants."""

    memory_bytes: int | None = None  # in all; None where that is not known
    bfloat16: bool = True  # whether it computes in it


LimitsOf = Callable[[DeviceKind], DeviceLimits]

# Variants of the shipped recipes, the best first; others come after them, the lossless one last.
_PREFERRED: Mapping[DeviceKind, Sequence[str]] = {
    "cpu": ("cpu-int8", "cpu-fast", "cpu-int4"),
    "cuda": ("cuda-bf16", "cuda-fp16", "cuda-int8", "cuda-int4"),
}
_LOSSLESS = "cpu-fp32"
_BFLOAT16_CAPABILITY = (8, 0)  # CUDA's compute capability, from which on there is arithmetic for it


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
    return best_variant(manifest, devices, device_limits, plan)


def best_variant(
    manifest: Manifest,
    devices: Sequence[DeviceKind],
    limits_of: LimitsOf,
    plan: CachePlan | None = None,
) -> VariantChoice:
    """The variant for the first of the devices that has any.

    That which the bundle's maker marked as its default; else the most preferred one whose estimated
    memory the device has; else the smallest; of those in bfloat16 only where the device computes in
    it, or there are no others. BundleError where no device has a variant.
    """
    for device in devices:
        names = [name for name, one in manifest.variants.items() if one.device == device]
        if names:
            return _best(manifest, device, names, limits_of, plan)
    made = ", ".join(f"{key} for {one.device}" for key, one in manifest.variants.items())
    raise BundleError(
        f"the bundle has no variant for {' or '.join(devices)}, only {made or 'none at all'}; "
        "choose a device that it was made for"
    )


def device_limits(device: DeviceKind) -> DeviceLimits:
    """What this machine's GPU has, or what a process may hold of its memory."""
    if device == "cpu":
        return DeviceLimits(machine_memory())
    try:
        gpu = find_gpu()
    except DeviceError:  # said with its reason when the variant is opened
        return DeviceLimits()
    return DeviceLimits(gpu.total_bytes, gpu.capability >= _BFLOAT16_CAPABILITY)


def _named(manifest: Manifest, device: str, name: str) -> VariantChoice:
    named = manifest.variants.get(name) if isinstance(name, str) else None
    if named is None:
        raise OptionError(
            f"variant is {name!r}, the bundle has {', '.join(manifest.variants)}"
            f"{_how_to_get(name, manifest)}"
        )
    if device not in ("auto", named.device):
        raise OptionError(
            f"variant {name} is made for {named.device}, device {device} was requested; "
            "leave one of the two out"
        )
    return VariantChoice(name, named, f"{name} was asked for")


def _how_to_get(name: object, manifest: Manifest) -> str:
    if any(name in names for names in _PREFERRED.values()):
        return f"; `paligemma-edge quantize BUNDLE {name}` adds it where it was exported"
    return suggestion(name, manifest.variants)


def _best(
    manifest: Manifest,
    device: DeviceKind,
    names: Sequence[str],
    limits_of: LimitsOf,
    plan: CachePlan | None,
) -> VariantChoice:
    def choice(name: str, reason: str) -> VariantChoice:
        return VariantChoice(name, manifest.variants[name], f"{name} {reason}")

    marked = manifest.default_variant
    if marked is not None and marked in names:
        return choice(marked, "is the default that the bundle's maker marked")
    if len(names) == 1:
        return choice(names[0], f"is the only variant for {device}")
    limits = limits_of(device)
    computed = [name for name in names if limits.bfloat16 or not _in_bfloat16(manifest, name)]
    name, why = _first_that_fits(manifest, device, computed or names, limits.memory_bytes, plan)
    aside = "; the GPU does not compute in bfloat16" if len(computed) < len(names) else ""
    return choice(name, f"is {why}{aside}")


def _first_that_fits(
    manifest: Manifest,
    device: DeviceKind,
    names: Sequence[str],
    memory: int | None,
    plan: CachePlan | None,
) -> tuple[str, str]:
    """The most preferred of the names, or the smallest, and what it is among them."""
    ordered = sorted(names, key=lambda name: _rank(device, name))
    preferred = f"the preferred one of {len(names)} variants for {device}"
    if memory is None:
        return ordered[0], preferred
    plan = plan or CachePlan.complete(manifest.model, 1, None)
    needs = {n: estimate_memory(manifest, manifest.variants[n], plan).total for n in names}
    for name in ordered:
        if needs[name] <= memory:
            sizes = f"about {_gigabytes(needs[name])} of {_gigabytes(memory)}"
            return name, f"{preferred} that fits its memory: {sizes}"
    smallest = min(names, key=lambda name: needs[name])
    return smallest, (
        f"the smallest variant for {device} and may not fit its memory: about "
        f"{_gigabytes(needs[smallest])}, of {_gigabytes(memory)} in all"
    )


def _in_bfloat16(manifest: Manifest, name: str) -> bool:
    return manifest.variants[name].compute_dtype == "bfloat16"


def _rank(device: DeviceKind, name: str) -> int:
    preferred = _PREFERRED[device]
    if name in preferred:
        return preferred.index(name)
    return len(preferred) + (name == _LOSSLESS)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
