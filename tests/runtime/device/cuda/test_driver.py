"""A GPU is described as the driver reports it; errors say what is missing."""

from __future__ import annotations

from typing import Any

import pytest

from paligemma_edge.runtime.device.cuda import driver as cuda_driver
from paligemma_edge.runtime.device.cuda.driver import Gpu, find_gpu, gpu_is_present
from paligemma_edge.runtime.errors import DeviceError
from tests.helpers.cuda_stand_ins import Driver


def find(driver: Driver, index: int = 0) -> Gpu:
    library: Any = driver
    return find_gpu(index, library=library)


@pytest.fixture(autouse=True)
def _nothing_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_a_gpu_is_described_as_the_driver_reports_it() -> None:
    driver = Driver(gpus=3)
    assert find(driver, 2) == Gpu(
        name="NVIDIA L12",
        capability=(8, 9),
        total_bytes=24 << 30,
        free_bytes=20 << 30,
        driver=(13, 1),
    )
    assert driver.retained == driver.current == []  # its context was given back


def test_a_gpu_that_shares_the_systems_memory_has_what_the_system_can_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cuda_driver, "available_memory", lambda: 23 << 30)
    assert find(Driver(integrated=True)).free_bytes == 23 << 30
    monkeypatch.setattr(cuda_driver, "available_memory", lambda: None)
    assert find(Driver(integrated=True)).free_bytes == 20 << 30


def test_a_missing_driver_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_driver, "_LIBRARY", "libno-such-driver.so.1")
    with pytest.raises(
        DeviceError, match=r"driver was not found \(libno-such-driver.*; install it"
    ):
        find_gpu()
    assert not gpu_is_present()


@pytest.mark.parametrize(("value", "hides"), [("", "every GPU"), ("-1", "every GPU"), ("5", "")])
@pytest.mark.parametrize("driver", [Driver(failing={"cuInit": 100}), Driver(gpus=0)])
def test_hidden_gpus_are_reported(
    monkeypatch: pytest.MonkeyPatch, driver: Driver, value: str, hides: str
) -> None:
    with pytest.raises(DeviceError, match="CUDA sees no GPU; see whether nvidia-smi lists one"):
        find(driver)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    wanted = f"CUDA sees no GPU; CUDA_VISIBLE_DEVICES is '{value}' and .*{hides}: unset it"
    with pytest.raises(DeviceError, match=wanted):
        find(driver)


@pytest.mark.parametrize("index", [-1, 2])
def test_an_index_without_a_gpu_is_an_error(monkeypatch: pytest.MonkeyPatch, index: int) -> None:
    with pytest.raises(DeviceError, match=f"GPU {index} was requested, CUDA sees GPUs 0 to 1$"):
        find(Driver(gpus=2), index)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with pytest.raises(DeviceError, match="sees GPU 0 alone; CUDA_VISIBLE_DEVICES is '1' and may"):
        find(Driver(), index)


def test_a_gpu_without_free_memory_is_an_error() -> None:
    with pytest.raises(DeviceError, match=r"NVIDIA L10 has too little free memory .*end what"):
        find(Driver(failing={"cuDevicePrimaryCtxRetain": 2}))


@pytest.mark.parametrize("call", ["cuMemGetInfo_v2", "cuCtxPushCurrent_v2"])
def test_a_context_is_given_back_where_a_call_fails(call: str) -> None:
    driver = Driver(failing={call: 803})
    with pytest.raises(DeviceError, match=f"{call} of NVIDIA's driver failed: CUDA error 803"):
        find(driver)
    assert driver.retained == driver.current == []


def test_an_error_has_its_text_and_what_to_do() -> None:
    wanted = "CUDA error 803, system has unsupported display driver / cuda driver .*restart the ma"
    with pytest.raises(DeviceError, match=wanted):
        find(Driver(failing={"cuInit": 803}))
    with pytest.raises(DeviceError, match=r"cuInit .*CUDA error 34, .* take its folder \(stubs\)"):
        find(Driver(failing={"cuInit": 34}))
    with pytest.raises(DeviceError, match=r"CUDA error 4711, without a text$"):
        find(Driver(failing={"cuInit": 4711}))


def test_a_driver_that_lacks_a_call_is_old() -> None:
    class Old:
        cuInit = Driver().cuInit  # noqa: N815 - the driver's name

    library: Any = Old()
    with pytest.raises(DeviceError, match="no cuDeviceGetCount; install a newer driver"):
        find_gpu(library=library)


@pytest.mark.parametrize(
    ("driver", "there"),
    [(Driver(), True), (Driver(gpus=0), False), (Driver(failing={"cuInit": 100}), False)],
)
def test_whether_a_gpu_is_present(driver: Driver, there: bool) -> None:
    library: Any = driver
    assert gpu_is_present(library=library) is there
    assert driver.retained == []  # to ask takes no memory of the GPU
