"""Which variant of a bundle runs here: the one that was named, or the first for the device.

Knows names and devices. Opens nothing.
"""

from __future__ import annotations

from typing import Literal, get_args

from paligemma_edge.runtime.device.device import check_present, present_devices
from paligemma_edge.runtime.errors import BundleError, OptionError
from paligemma_edge.runtime.manifest import Manifest, Variant

DeviceName = Literal["auto", "cpu", "cuda"]


def choose_variant(
    manifest: Manifest, device: DeviceName = "auto", variant: str | None = None
) -> tuple[str, Variant]:
    """The variant that was named, or the first one that is made for the device."""
    _check_name(device)
    if variant is not None:
        return variant, _named(manifest, device, variant)
    if device != "auto":
        check_present(device)
    wanted = present_devices() if device == "auto" else (device,)
    for name in wanted:
        for key, candidate in manifest.variants.items():
            if candidate.device == name:
                return key, candidate
    made = ", ".join(f"{key} for {found.device}" for key, found in manifest.variants.items())
    raise BundleError(
        f"the bundle has no variant for {' or '.join(wanted)}, only {made or 'none at all'}; "
        "choose a device that it was made for"
    )


def _check_name(device: str) -> None:
    if device not in get_args(DeviceName):
        raise OptionError(f"device is {device!r}, wanted one of {', '.join(get_args(DeviceName))}")


def _named(manifest: Manifest, device: str, variant: str) -> Variant:
    found = manifest.variants.get(variant) if isinstance(variant, str) else None
    if found is None:
        raise OptionError(f"variant is {variant!r}, the bundle has {', '.join(manifest.variants)}")
    if device not in ("auto", found.device):
        raise OptionError(
            f"variant {variant} is made for {found.device}, device {device} was asked for; "
            "leave one of the two out"
        )
    return found
