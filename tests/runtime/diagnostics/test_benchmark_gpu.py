"""What `bench` tells of a GPU, which is the processor here; its driver is a stand-in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from paligemma_edge.quantize.quantizer import QuantizeOptions, quantize
from paligemma_edge.quantize.recipes.recipe import load_recipe
from paligemma_edge.runtime.cli import main as cli
from paligemma_edge.runtime.device.cuda.check import Gpu
from paligemma_edge.runtime.diagnostics import benchmark as bench
from paligemma_edge.runtime.diagnostics.benchmark import benchmark
from paligemma_edge.runtime.errors import OptionError
from paligemma_edge.runtime.loading import loaded_model
from tests.helpers.gpu_on_host import GpuOnHost

GB = 10**9


@pytest.fixture
def bundle(shapes_copy: Path) -> Path:
    quantize(
        shapes_copy, [load_recipe("cuda-fp16")], QuantizeOptions(calibrate=False, report=False)
    )
    return shapes_copy


@pytest.fixture
def frees(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """What is free of the GPU each time that it is asked; all has to be asked for."""
    free = [20 * GB, 15 * GB]

    def find_gpu() -> Gpu:
        return Gpu("NVIDIA L4", (8, 9), 24 * GB, free.pop(0), (13, 0))

    monkeypatch.setattr(bench, "find_gpu", find_gpu)
    monkeypatch.setattr(bench, "check_present", lambda _: None)
    monkeypatch.setattr(
        loaded_model, "device_for", lambda *_, **__: GpuOnHost(name="cpu", threads=1)
    )
    yield free
    assert not free


def test_a_gpu_is_named_and_what_was_taken_of_it(
    bundle: Path, frees: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    few = ("--steps", "2", "--runs", "1", "--max-batch-size", "1,3")
    assert cli.main(["bench", str(bundle), "--variant", "cuda-fp16", *few]) == 0
    *table, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    assert (found["device"], found["gpu"], found["memory"]["gpu"]) == (
        "cuda",
        "NVIDIA L4",
        5 * GB,
    )
    assert found["memory"]["peak"] > 0
    assert "GPU           NVIDIA L4" in table
    assert "GPU                 5000.0  less free there than before the load" in table
    assert [step["batch_size"] for step in found["stepping"]] == [1, 3]


def test_a_processor_has_no_gpu(shapes_bundle: Path) -> None:
    found = benchmark(shapes_bundle, "cpu", threads=1, steps=1, runs=1)
    assert "gpu" not in found.to_json()
    assert "gpu" not in found.memory


def test_more_than_was_planned_is_refused(shapes_bundle: Path) -> None:
    with pytest.raises(OptionError, match="batch size is 3 and max_batch_size 2"):
        benchmark(shapes_bundle, "cpu", steps=1, runs=1, batch_sizes=[1, 3], max_batch_size=2)
    with pytest.raises(OptionError, match="steps is 40, the model holds 100 in all"):
        benchmark(shapes_bundle, "cpu", steps=40, runs=1, max_length=100)
