"""A GPU that is full is one error; the process lives, and a smaller request is answered."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Iterator

import numpy as np
import pytest

from paligemma_edge import PaliGemma
from paligemma_edge.runtime.device.cuda.check import find_gpu
from paligemma_edge.runtime.errors import DeviceError
from tests.gpu.conftest import Record
from tests.gpu.on_gpu import SHAPES, Requests, Where

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("gpu")]
VARIANT = "cuda-fp16"
MB = 1 << 20


def one_line(error: pytest.ExceptionInfo[DeviceError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


@contextlib.contextmanager
def full_gpu(leave: int) -> Iterator[None]:
    """All of the GPU but so many bytes is taken, as by another program; a model is open."""
    runtime, place = cuda_runtime(), ctypes.c_void_p()
    size = find_gpu().free_bytes - leave
    assert runtime.cudaMalloc(ctypes.byref(place), ctypes.c_size_t(size)) == 0
    try:
        yield
    finally:
        assert runtime.cudaFree(place) == 0


def cuda_runtime() -> ctypes.CDLL:
    for name in ("libcudart.so.13", "libcudart.so.12"):
        with contextlib.suppress(OSError):
            return ctypes.CDLL(name)
    pytest.skip("CUDA's runtime is not where it is found by its name")


def test_a_limit_that_is_too_small_is_an_error_before_anything_is_opened(where: Where) -> None:
    message = r"the variant needs about .* the memory limit is"
    with pytest.raises(DeviceError, match=message) as error:
        where.open(SHAPES, VARIANT, memory_limit=1_000_000)
    one_line(error)


def test_more_slots_than_the_gpu_holds_are_an_error_before_anything_is_opened(where: Where) -> None:
    with pytest.raises(DeviceError, match=r"the variant needs about .* what is free") as error:
        where.open(SHAPES, VARIANT, max_batch_size=10_000_000)
    one_line(error)


def test_slots_that_do_not_fit_leave_the_model_usable(
    fp16: PaliGemma, requests: Requests, record: Record
) -> None:
    expected = fp16.generate(*requests[0]).token_ids
    slots = 2048 * MB // fp16._loaded.engine.config.cache_bytes(512, fp16._loaded.engine.dtype)
    with full_gpu(leave=1024 * MB):
        with pytest.raises(DeviceError, match="keys and values of") as error:
            fp16._loaded.engine.cache(slots, 512)
        assert fp16.generate(*requests[0]).token_ids == expected
    record("slots that do not fit", one_line(error))
    fp16._loaded.engine.cache(slots, 512)


def test_a_model_does_not_open_on_a_full_gpu_and_does_on_a_free_one(
    where: Where, fp16: PaliGemma, requests: Requests
) -> None:
    expected = fp16.generate(*requests[0]).token_ids
    with full_gpu(leave=64 * MB), pytest.raises(DeviceError) as error:
        where.open(SHAPES, VARIANT)
    one_line(error)
    assert where.open(SHAPES, VARIANT).generate(*requests[0]).token_ids == expected


def test_a_run_that_does_not_fit_leaves_the_model_usable(
    where: Where, fp16: PaliGemma, requests: Requests, record: Record
) -> None:
    """One image is encoded within the limit, and thousands at once are not."""
    model, side = where.limited(SHAPES, VARIANT, 256 * MB), 112
    expected = fp16.generate(*requests[0]).token_ids
    assert model.generate(*requests[0]).token_ids == expected
    with pytest.raises(DeviceError, match="ONNX Runtime failed while it ran a graph") as error:
        model._loaded.engine.encode(np.zeros((8192, 3, side, side), np.float32))
    record("a run that does not fit", one_line(error))
    assert "memory" in str(error.value)
    assert model.generate(*requests[0]).token_ids == expected


def test_a_recorded_model_lives_through_a_full_gpu(where: Where, requests: Requests) -> None:
    model = where.open(SHAPES, VARIANT, cuda_graph=True, max_batch_size=2)
    expected = [answer.token_ids for answer in model.generate_batch(requests[:4])]
    slots = 2048 * MB // model._loaded.engine.config.cache_bytes(512, model._loaded.engine.dtype)
    with full_gpu(leave=1024 * MB):
        with pytest.raises(DeviceError, match="keys and values of"):
            model._loaded.engine.cache(slots, 512)
        assert [answer.token_ids for answer in model.generate_batch(requests[:4])] == expected


def test_a_model_that_is_dropped_gives_its_memory_back(where: Where, record: Record) -> None:
    where.open(SHAPES, VARIANT)  # CUDA keeps what it takes for a process
    gc.collect()
    before = find_gpu().free_bytes
    for _ in range(3):
        where.open(SHAPES, VARIANT)
        gc.collect()
    kept = before - find_gpu().free_bytes
    record("kept of three models that were dropped, MB", f"{kept / 1e6:.1f}")
    assert kept < 32e6
