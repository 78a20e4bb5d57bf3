"""The texts that CUDA and ONNX Runtime 1.31 really give, and what they mean to a person."""

from __future__ import annotations

import pytest

from paligemma_edge.runtime.device.cuda.errors import explain

# Around each error of CUDA, cuBLAS and cuDNN that ONNX Runtime throws.
THROWN = (
    "/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_call.cc:154 std::conditional_t<THRW, "
    "void, onnxruntime::common::Status> onnxruntime::CudaCall(ERRTYPE, const char*, const char*, "
    "SUCCTYPE, const char*, const char*, int) [with ERRTYPE = cudaError; bool THRW = true; "
    "SUCCTYPE = cudaError; std::conditional_t<THRW, void, common::Status> = void] {} ; GPU=0 ; "
    "hostname=vm ; file=/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_execution_provider.cc"
    " ; line=355 ; expr=cudaSetDevice(info_.device_id); \n\n"
)
NODE = (
    "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Relu node. "
    "Name:'' Status Message: {}"
)
ARENA = (
    "[ONNXRuntimeError] : 1 : FAIL : /onnxruntime_src/onnxruntime/core/framework/bfc_arena.cc:360 "
    "void* onnxruntime::BFCArena::AllocateRawInternal(size_t, bool, onnxruntime::Stream*) {}"
)
RETURNED = "[ONNXRuntimeError] : 1 : FAIL : {} ; GPU=0 ; hostname=vm ; file=x.cc ; line=1 ; expr=y;"


@pytest.mark.parametrize(
    ("frame", "text", "wanted"),
    [
        (THROWN, "CUDA failure 2: out of memory", "not enough free memory"),
        (ARENA, "Failed to allocate memory for requested buffer of size 256", "not enough free"),
        (ARENA, "Available memory of 34699008 is smaller than requested bytes of 945041920", "not"),
        (THROWN, "CUBLAS failure 3: the resource allocation failed", "not enough free memory"),
        (THROWN, "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED", "not enough free memory"),
        (
            THROWN,
            "CUDNN failure 4004: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
            "not enough free memory",
        ),
        (THROWN, "CUBLAS failure 1: the library was not initialized", "could not start"),
        (THROWN, "CUDNN failure 1001: CUDNN_STATUS_NOT_INITIALIZED", "could not start"),
        (
            NODE,
            "CUDA error cudaErrorNoKernelImageForDevice:no kernel image is available for execution "
            "on the device",
            "no code for this GPU",
        ),
        (
            THROWN,
            "CUBLAS failure 8: the function requires an architectural feature absent from the "
            "device",
            "no code for this GPU",
        ),
        (
            THROWN,
            "CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version",
            "driver is too old",
        ),
        (
            THROWN,
            "CUDA failure 804: forward compatibility was attempted on non supported HW",
            "cuda/compat",
        ),
        (
            THROWN,
            "CUDA failure 803: system has unsupported display driver / cuda driver combination",
            "restart the machine",
        ),
        (THROWN, "CUDA failure 100: no CUDA-capable device is detected", "sees no GPU"),
        (THROWN, "CUDA failure 46: CUDA-capable device(s) is/are busy or unavailable", "holds the"),
        (THROWN, "CUDA failure 802: system not yet initialized", "nvidia-fabricmanager"),
        (THROWN, "CUDA failure 3: initialization error", "forked"),
        (THROWN, "CUDA failure 999: unknown error", "the driver failed"),
        (NODE, "CUDA error cudaErrorUnknown:unknown error", "the driver failed"),
        (RETURNED, "CUDA failure 719: unspecified launch failure", "start it again"),
        (RETURNED, "CUDA failure 700: an illegal memory access was encountered", "start it again"),
        (RETURNED, "CUDA failure 214: uncorrectable ECC error encountered", "the GPU failed"),
        (NODE, "CUDA error cudaErrorLaunchFailure:unspecified launch failure", "start it again"),
        (
            NODE,
            "/x/cuda_kernel.h:272 static cudnnContext* onnxruntime::cuda::CudaKernel::"
            "RequireCudnnHandle(cudnnHandle_t) [ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : cuDNN is "
            "unavailable or disabled for CUDA Execution Provider: dlopen failed for libcudnn.so",
            "cuDNN is missing",
        ),
        (
            "[ONNXRuntimeError] : 1 : FAIL : {}",
            "This session contains graph nodes that are assigned to the default CPU EP, but "
            "fallback to CPU EP has been explicitly disabled by the user.",
            "CUDA did not start, or",
        ),
    ],
)
def test_a_failure_is_one_line(frame: str, text: str, wanted: str) -> None:
    message = explain(RuntimeError(frame.format(text)))
    assert message is not None
    assert wanted in message
    assert "\n" not in message
    assert len(message) < 300
    # CUDA's own words stay, for whoever looks them up, and the C++ around them goes.
    assert message.startswith(f"{text}; ") or " failure " not in text
    assert "hostname" not in message


@pytest.mark.parametrize(
    ("wanted", "texts"),
    [
        (
            "start it again",
            (
                "the launch timed out and was terminated",
                "an illegal instruction was encountered",
                "misaligned address",
                "device-side assert triggered",
                "hardware stack error",
                "invalid program counter",
                "the function failed to launch on the GPU",
                "CUDNN_STATUS_EXECUTION_FAILED_CUDART",
                "[ONNXRuntimeError] : 21 : DEVICE_RESET : ",
            ),
        ),
        (
            "no code for this GPU",
            ("invalid device function", "CUDNN_STATUS_NOT_SUPPORTED_ARCH_MISMATCH"),
        ),
        (
            "driver is too old",
            (
                "the provided PTX was compiled with an unsupported toolchain.",
                "CUDA failure 36: API call is not supported in the installed CUDA driver ; GPU=-1",
            ),
        ),
    ],
)
def test_errors_of_one_cause_have_one_message(wanted: str, texts: tuple[str, ...]) -> None:
    assert all(wanted in (explain(RuntimeError(text)) or "") for text in texts)


def test_a_failure_of_cuda_that_is_not_known_keeps_its_own_words() -> None:
    text = "CUDA failure 900: operation not permitted when stream is capturing"
    assert explain(RuntimeError(THROWN.format(text))) == text


@pytest.mark.parametrize("text", ["", "Invalid rank for input: x Got: 1 Expected: 2", "CUDA"])
def test_what_is_not_known_is_none(text: str) -> None:
    assert explain(ValueError(text)) is None
