"""What a model is opened for, what that takes, and who may use it."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from paligemma_edge import PaliGemma
from paligemma_edge.runtime.cli import main as cli
from paligemma_edge.runtime.device.cuda.check import Gpu
from paligemma_edge.runtime.device.device import Device
from paligemma_edge.runtime.engine.cache_plan import CachePlan
from paligemma_edge.runtime.errors import DeviceError, OptionError, PromptError
from paligemma_edge.runtime.generation.request import GenerationOptions
from paligemma_edge.runtime.loading import options as opening
from paligemma_edge.runtime.loading.memory_estimate import estimate_memory
from paligemma_edge.runtime.loading.options import cache_plan_for, device_for
from paligemma_edge.runtime.manifest import Manifest
from tests.helpers.small_bundle import manifest as small_manifest

LONG = 90
BEYOND = f"opened with max_length {LONG} in all; open it with more"


@pytest.fixture(scope="module")
def planned(shapes_bundle: Path) -> PaliGemma:
    return PaliGemma(shapes_bundle, device="cpu", max_batch_size=2, max_length=LONG)


@pytest.fixture(scope="module")
def image(shapes_images: Path) -> Path:
    return shapes_images / "00.png"


def test_answers_within_a_plan_are_those_without_one(
    planned: PaliGemma, shapes_model: PaliGemma, shapes_images: Path
) -> None:
    batch: list[Any] = [
        (shapes_images / name, prompt)
        for name in ("00.png", "01.png")
        for prompt in ("caption en", "detect star", "ocr")
    ]
    actual = planned.generate_batch(batch, max_new_tokens=12)
    expected = shapes_model.generate_batch(batch, max_new_tokens=12)
    assert [g.token_ids for g in actual] == [g.token_ids for g in expected]
    assert [g.token_ids for g in planned.generate_batch(batch[:1] * 3, max_new_tokens=12)] == [
        expected[0].token_ids
    ] * 3


def test_no_memory_is_taken_for_a_second_answer(planned: PaliGemma, image: Path) -> None:
    with planned._loaded.pipeline.cache_pool.acquire(1, 10) as first:
        pass
    planned.generate(image, "caption en", max_new_tokens=4)
    with planned._loaded.pipeline.cache_pool.acquire(2, LONG) as second:
        assert second is first
        assert not second.lengths.any()


def test_what_is_beyond_a_plan_is_refused_before_an_image_is_read(planned: PaliGemma) -> None:
    nowhere = "no such image.png"
    with pytest.raises(OptionError, match=r"max_batch_size is 3, .* opened with max_batch_size 2"):
        planned.generate_batch([(nowhere, "caption en")] * 4, max_batch_size=3)
    with pytest.raises(PromptError, match=BEYOND):
        planned.generate(nowhere, "caption en", max_new_tokens=LONG)
    with pytest.raises(PromptError, match=BEYOND):
        planned.generate_batch([([nowhere, nowhere], "caption en")])


def test_an_answer_has_the_room_that_was_planned(planned: PaliGemma, image: Path) -> None:
    request = planned._loaded.pipeline.request("caption en", 1, GenerationOptions())
    assert request.capacity == LONG


def test_planned_slots_are_one_users_at_a_time(planned: PaliGemma, image: Path) -> None:
    stream = planned.stream(image, "caption en", max_new_tokens=12)
    next(stream)
    with pytest.raises(DeviceError, match="in use by an answer that is not complete"):
        planned.generate(image, "caption en", max_new_tokens=4)
    stream.close()  # type: ignore[attr-defined]
    assert planned.generate(image, "caption en", max_new_tokens=4).text


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"max_batch_size": 0}, "max_batch_size is 0, wanted a whole number of at least 1"),
        ({"max_batch_size": 2.5}, "max_batch_size is 2.5"),
        ({"max_length": 66}, "max_length is 66, wanted 67 to 512 tokens"),
        ({"max_length": 513}, "max_length is 513, wanted 67 to 512 tokens"),
        ({"memory_limit": 10**9}, "memory_limit is about a GPU's memory"),
        ({"cuda_graph": True}, "cuda_graph records steps on a GPU, variant cpu-fp32"),
    ],
)
def test_what_cannot_be_planned_is_said(
    shapes_bundle: Path, given: dict[str, Any], problem: str
) -> None:
    with pytest.raises(OptionError, match=problem):
        PaliGemma(shapes_bundle, device="cpu", **given)


def test_the_command_line_plans_too(
    shapes_bundle: Path, image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["run", str(shapes_bundle), "caption en", str(image)]
    assert cli.main([*command, "--max-batch-size", "1", "--max-length", "90"]) == 0
    assert capsys.readouterr().out.strip()
    assert cli.main([*command, "--max-batch-size", "0"]) == 2
    assert "max_batch_size is 0" in capsys.readouterr().err
    assert cli.main([*command, "--memory-limit", "-3"]) == 2
    assert "--memory-limit is '-3', wanted a size" in capsys.readouterr().err


# What it takes, of a variant for a GPU that is not here.


@pytest.fixture
def gpu_manifest() -> Manifest:
    manifest = small_manifest()
    gpu = dataclasses.replace(
        manifest.variants["cpu-fp32"],
        device="cuda",
        recipe="fp16",
        compute_dtype="float16",
        memory_bytes=5_000_000_000,
    )
    return dataclasses.replace(manifest, variants={"cuda-fp16": gpu})


def test_a_forecast_adds_up(gpu_manifest: Manifest) -> None:
    variant = gpu_manifest.variants["cuda-fp16"]
    estimate = estimate_memory(gpu_manifest, variant, CachePlan(max_batch_size=3, max_length=32))
    cache = 3 * 32 * 2 * 4 * 2  # slots, tokens, key and value, head_dim, bytes
    assert estimate.cache == 2048 >= cache > 1024
    assert estimate.weights == 5_000_000_000
    assert (
        estimate.total == estimate.weights + estimate.cache + estimate.workspace + estimate.device
    )
    larger = estimate_memory(gpu_manifest, variant, CachePlan(max_batch_size=300, max_length=32))
    assert larger.total > estimate.total
    assert estimate.describe().startswith(f"about {estimate.total / 1e9:.2f} GB: 5.00 weights")


def test_a_processor_takes_what_is_asked_and_no_more() -> None:
    manifest = small_manifest()
    estimate = estimate_memory(
        manifest, manifest.variants["cpu-fp32"], CachePlan(max_batch_size=3, max_length=32)
    )
    assert estimate.cache == 3 * 32 * 2 * 4 * 4


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A GPU with 8 GB of which 6 are free; what the device was opened with."""
    seen: list[Any] = []

    def open_device(name: Any, threads: Any, **options: Any) -> Device:  # noqa: ANN401
        seen.append(options)
        return Device(name=name, threads=1, gpu=gpu, **options)

    gpu = Gpu("a GPU", (8, 6), 8_000_000_000, 6_000_000_000, (13, 0))
    monkeypatch.setattr(opening, "open_device", open_device)
    return seen


def test_a_variant_that_fits_is_opened_with_its_limit(
    gpu_manifest: Manifest, limits: list[Any]
) -> None:
    variant = gpu_manifest.variants["cuda-fp16"]
    plan = CachePlan(max_batch_size=1, max_length=32)
    device = device_for(gpu_manifest, variant, plan, {"memory_limit": "5.9GB", "cuda_graph": True})
    estimate = estimate_memory(gpu_manifest, variant, plan)
    assert device.cuda_graph
    assert (
        device.memory_limit == 5_900_000_000 - estimate.weights - estimate.cache - estimate.device
    )
    assert device_for(gpu_manifest, variant, None, {"threads": 2}).memory_limit is None


@pytest.mark.parametrize(
    ("weights", "limit", "problem"),
    [
        (7_000_000_000, None, "what is free of the 8.0 GB of a GPU is 6.00 GB.*end what else"),
        (5_000_000_000, 4_000_000_000, "the memory limit is 4.00 GB.*raise the limit"),
    ],
)
def test_a_variant_that_does_not_fit_is_not_tried(
    gpu_manifest: Manifest, limits: list[Any], weights: int, limit: int | None, problem: str
) -> None:
    variant = dataclasses.replace(gpu_manifest.variants["cuda-fp16"], memory_bytes=weights)
    with pytest.raises(DeviceError, match=f"needs about .* weights.*{problem}"):
        device_for(gpu_manifest, variant, None, {"memory_limit": limit})


@pytest.mark.parametrize("limit", ["4", "GB", "-1GB", "0GB", "4 gigs", -1, 4e9, True])
def test_a_limit_that_is_none_is_refused(
    gpu_manifest: Manifest,
    limits: list[Any],
    limit: Any,  # noqa: ANN401
) -> None:
    variant = gpu_manifest.variants["cuda-fp16"]
    with pytest.raises(OptionError, match=r"memory_limit is .*wanted a size above 0 with its unit"):
        device_for(gpu_manifest, variant, None, {"memory_limit": limit})


def test_steps_that_are_recorded_are_planned_for(gpu_manifest: Manifest) -> None:
    variant = gpu_manifest.variants["cuda-fp16"]
    assert cache_plan_for(gpu_manifest, variant, {}) is None
    plan = cache_plan_for(gpu_manifest, variant, {"cuda_graph": True})
    assert plan == CachePlan(max_batch_size=4, max_length=32)


def test_inspect_tells_what_each_variant_takes(
    shapes_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["inspect", str(shapes_bundle), "--max-batch-size", "64"]) == 0
    many = capsys.readouterr().out
    assert "forecast for 64 answers at a time of at most 512 tokens" in many
    assert cli.main(["inspect", str(shapes_bundle)]) == 0
    few = capsys.readouterr().out
    assert _total(many) > _total(few)


def _total(text: str) -> float:
    """Megabytes of the one variant: the second size in its row."""
    (line,) = [line for line in text.splitlines() if line.startswith("cpu-fp32")]
    first, second = (float(size) for size in re.findall(r"([0-9.]+) MB", line))
    assert first != second
    return second
