"""Which variant is used where none is named: a table of manifests, devices and memories."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from paligemma_edge import PaliGemma
from paligemma_edge.runtime.bundle.bundle import Bundle
from paligemma_edge.runtime.bundle.writer import amend_bundle
from paligemma_edge.runtime.device.cuda.driver import Gpu
from paligemma_edge.runtime.errors import BundleError, DeviceError, OptionError
from paligemma_edge.runtime.loading import variants as loading_variants
from paligemma_edge.runtime.loading.variants import (
    DeviceLimits,
    VariantChoice,
    best_variant,
    choose_variant,
    device_limits,
)
from paligemma_edge.runtime.manifest import Manifest, Variant
from tests.helpers.small_bundle import manifest as small_manifest

GB = 10**9
SIZES = {  # of the weights
    "cpu-fp32": 12,
    "cpu-mine": 6,
    "cpu-int4": 2,
    "cpu-fast": 3,
    "cpu-int8": 4,
    "cuda-int4": 2,
    "cuda-fp16": 6,
    "cuda-bf16": 6,
}
CPU = ("cpu-fp32", "cpu-mine", "cpu-int4", "cpu-fast", "cpu-int8")


def manifest(names: Sequence[str], marked: str | None = None) -> Manifest:
    small = small_manifest()
    variants: dict[str, Variant] = {}
    for name in names:
        device: Any = name.partition("-")[0]
        variants[name] = dataclasses.replace(
            small.variants["cpu-fp32"],
            device=device,
            recipe=name.partition("-")[2],
            compute_dtype="bfloat16" if name == "cuda-bf16" else "float32",
            memory_bytes=SIZES[name] * GB,
        )
    return dataclasses.replace(small, variants=variants, default_variant=marked)


def best(
    names: Sequence[str],
    memory: int | None,
    devices: Sequence[Any] = ("cpu",),
    marked: str | None = None,
    *,
    bfloat16: bool = True,
) -> VariantChoice:
    limits = DeviceLimits(None if memory is None else memory * GB, bfloat16)
    return best_variant(manifest(names, marked), devices, lambda _: limits)


@pytest.mark.parametrize(
    ("names", "memory", "devices", "chosen", "why"),
    [
        (CPU, 64, ("cpu",), "cpu-int8", "the preferred one of 5 variants for cpu that fits"),
        (CPU, None, ("cpu",), "cpu-int8", "the preferred one of 5 variants for cpu"),
        (CPU, 4, ("cpu",), "cpu-fast", "fits its memory: about 3.75 GB of 4.00 GB"),
        (CPU, 3, ("cpu",), "cpu-int4", "fits its memory"),
        (CPU, 1, ("cpu",), "cpu-int4", "the smallest variant for cpu and may not fit"),
        (("cpu-fp32", "cpu-mine"), 64, ("cpu",), "cpu-mine", "preferred one of 2"),
        (("cpu-fp32", "cpu-mine"), 1, ("cpu",), "cpu-mine", "smallest"),
        (("cpu-fp32",), 1, ("cpu",), "cpu-fp32", "the only variant for cpu"),
        (tuple(SIZES), 80, ("cuda", "cpu"), "cuda-bf16", "3 variants for cuda that fits"),
        (tuple(SIZES), 3, ("cuda", "cpu"), "cuda-int4", "fits"),
        (CPU, 64, ("cuda", "cpu"), "cpu-int8", "5 variants for cpu"),
    ],
)
def test_the_best_that_fits_is_taken(
    names: Sequence[str], memory: int | None, devices: Sequence[Any], chosen: str, why: str
) -> None:
    choice = best(names, memory, devices)
    assert choice.name == chosen
    assert choice.variant.recipe == chosen.partition("-")[2]
    assert choice.reason.startswith(f"{chosen} is ")
    assert why in choice.reason


def test_the_marked_one_is_taken_if_it_is_for_the_device() -> None:
    choice = best(tuple(SIZES), 1, ("cpu",), marked="cpu-fp32")
    assert choice.name == "cpu-fp32"
    assert choice.reason == "cpu-fp32 is the default that the bundle's maker marked"
    assert best(tuple(SIZES), 64, ("cuda", "cpu"), marked="cpu-fp32").name == "cuda-bf16"


@pytest.mark.parametrize(
    ("names", "memory", "chosen", "why"),
    [
        (tuple(SIZES), 80, "cuda-fp16", "2 variants for cuda that fits its memory: about "),
        (tuple(SIZES), None, "cuda-fp16", "2 variants for cuda; the GPU does not compute in"),
        (tuple(SIZES), 3, "cuda-int4", "fits"),
        (("cuda-bf16", "cuda-int4"), 80, "cuda-int4", "does not compute in bfloat16"),
    ],
)
def test_bfloat16_is_left_to_a_gpu_that_computes_in_it(
    names: Sequence[str], memory: int | None, chosen: str, why: str
) -> None:
    choice = best(names, memory, ("cuda", "cpu"), bfloat16=False)
    assert choice.name == chosen
    assert why in choice.reason
    assert choice.reason.endswith("; the GPU does not compute in bfloat16")


def test_a_gpu_without_bfloat16_still_gets_the_only_variant() -> None:
    assert best(("cuda-bf16",), 80, ("cuda",), bfloat16=False).name == "cuda-bf16"
    marked = best(tuple(SIZES), 80, ("cuda",), "cuda-bf16", bfloat16=False)
    assert marked.reason == "cuda-bf16 is the default that the bundle's maker marked"


@pytest.mark.parametrize(("capability", "bfloat16"), [((7, 5), False), ((8, 0), True)])
def test_a_gpu_computes_in_bfloat16_from_capability_8_on(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], bfloat16: bool
) -> None:
    gpu = Gpu("NVIDIA T4", capability, 16 * GB, 15 * GB, (13, 0))
    monkeypatch.setattr(loading_variants, "find_gpu", lambda: gpu)
    assert device_limits("cuda") == DeviceLimits(16 * GB, bfloat16)


def test_of_a_gpu_that_is_not_found_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> Gpu:
        raise DeviceError("CUDA sees no GPU")

    monkeypatch.setattr(loading_variants, "find_gpu", absent)
    assert device_limits("cuda") == DeviceLimits(None, bfloat16=True)


def test_the_device_is_looked_at_only_where_that_decides() -> None:
    def refuse(_: object) -> DeviceLimits:
        raise AssertionError("not needed")

    assert best_variant(manifest(["cpu-int4"]), ("cpu",), refuse).name == "cpu-int4"
    assert best_variant(manifest(CPU, "cpu-fast"), ("cpu",), refuse).name == "cpu-fast"
    assert choose_variant(manifest(CPU), variant="cpu-fp32").reason == "cpu-fp32 was asked for"


def test_a_mark_on_nothing_is_a_damaged_manifest() -> None:
    with pytest.raises(BundleError, match="default_variant is 'cpu-int4', which is no variant"):
        manifest(["cpu-fp32"], "cpu-int4")


def test_a_model_says_which_variant_it_took_and_why(
    shapes_copy: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading_variants, "present_devices", lambda: ("cpu",))
    with caplog.at_level(logging.INFO, "paligemma_edge"), PaliGemma(shapes_copy) as model:
        assert model.variant_reason == "cpu-fp32 is the only variant for cpu"
    assert [record.getMessage() for record in caplog.records] == [
        f"{shapes_copy}: variant cpu-fp32 is the only variant for cpu"
    ]
    caplog.clear()
    with caplog.at_level(logging.INFO, "paligemma_edge"):
        PaliGemma(shapes_copy, variant="cpu-fp32").close()
    assert not caplog.records
    amend_bundle(
        Bundle.open(shapes_copy), {}, lambda m: dataclasses.replace(m, default_variant="cpu-fp32")
    )
    with PaliGemma(shapes_copy) as model:
        assert model.variant_reason == "cpu-fp32 is the default that the bundle's maker marked"


def test_a_variant_of_a_shipped_recipe_that_the_bundle_lacks_is_told_how_to_get(
    shapes_bundle: Path,
) -> None:
    manifest = Bundle.open(shapes_bundle).manifest
    with pytest.raises(OptionError, match="quantize BUNDLE cpu-int4` adds it"):
        choose_variant(manifest, variant="cpu-int4")
    with pytest.raises(OptionError, match="did you mean cpu-fp32"):
        choose_variant(manifest, variant="cpu-fp23")
