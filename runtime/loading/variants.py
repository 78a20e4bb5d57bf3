"""Which variant of a bundle is used: the named one, or the first one for the device.

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
    """The named variant, or the first one that is made for the device."""
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
    made = ", ".join(f"{key} for {one.device}" for key, one in manifest.variants.items())
    raise BundleError(
        f"the bundle has no variant for {' or '.join(wanted)}, only {made or 'none at all'}; "
        "choose a device that it was made for"
    )


def _check_name(device: str) -> None:
    if device not in get_args(DeviceName):
        raise OptionError(f"device is {device!r}, wanted one of {', '.join(get_args(DeviceName))}")


def _named(manifest: Manifest, device: str, variant: str) -> Variant:
    named = manifest.variants.get(variant) if isinstance(variant, str) else None
    if named is None:
        raise OptionError(f"variant is {variant!r}, the bundle has {', '.join(manifest.variants)}")
    if device not in ("auto", named.device):
        raise OptionError(
            f"variant {variant} is made for {named.device}, device {device} was requested; "
            "leave one of the two out"
        )
    return named
