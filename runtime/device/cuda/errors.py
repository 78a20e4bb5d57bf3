"""What an error of CUDA means, and what to do about it.

Knows the texts of CUDA's driver and runtime, of its libraries and of ONNX Runtime. Uses no device.
"""

from __future__ import annotations

import re

# ONNX Runtime writes lines of C++ around what failed: "… CUDA failure 2: out of memory ; GPU=0".
_FAILURE = re.compile(r"\b(?:CUDA|CUBLAS|CUDNN|CURAND|CUFFT) failure \d+: [^;]+(?= ;)")

_MEMORY = (
    "the GPU has not enough free memory; end what else uses it, process fewer images or tokens "
    "at once, or choose a variant with smaller weights"
)
_NO_CODE = (
    "this ONNX Runtime has no code for this GPU; use another GPU, or an ONNX Runtime that was "
    "built for it"
)
_DRIVER = "the NVIDIA driver is too old for this ONNX Runtime's CUDA; install a newer one"

# The first match counts. cudaGetErrorString and cuGetErrorString agree in their texts; cuBLAS has
# those of cublasGetStatusString, in CUDA 12 and before the constants' names.
_MEANINGS: tuple[tuple[str, str], ...] = (
    # ONNX Runtime's arena, first when the GPU refuses, then when `gpu_mem_limit` does
    (r"Failed to allocate memory for requested buffer", _MEMORY),
    (r"Available memory of \d+ is smaller than requested", _MEMORY),
    (r"\bout of memory\b", _MEMORY),
    (r"the resource allocation failed|CU(BLAS|DNN)_STATUS_\w*ALLOC\w*_FAILED", _MEMORY),
    (
        r"the library was not initialized|CU(BLAS|DNN)_STATUS_NOT_INITIALIZED",
        "a library of CUDA could not start, most often because the GPU's memory is full; "
        "end what else uses the GPU",
    ),
    (r"no kernel image is available|invalid device function", _NO_CODE),
    (r"architectural feature absent from the device|ARCH_MISMATCH", _NO_CODE),
    (r"driver version is insufficient|not supported in the installed CUDA driver", _DRIVER),
    (r"compiled with an unsupported toolchain", _DRIVER),
    (
        r"forward compatibility was attempted",
        "CUDA's compatibility package is loaded instead of the driver and does not support this "
        "GPU; take its folder (cuda/compat) out of LD_LIBRARY_PATH, or install a newer driver",
    ),
    (
        r"unsupported display driver / cuda driver combination",
        "the driver's library and its kernel module have different versions, as after an update; "
        "restart the machine",
    ),
    (
        r"CUDA driver is a stub library",
        "the toolkit's stub was loaded instead of the driver; take its folder (stubs) out of "
        "LD_LIBRARY_PATH",
    ),
    (
        r"no CUDA-capable device is detected",
        "CUDA sees no GPU; see whether nvidia-smi lists one, and give a container its GPU "
        "(docker run --gpus all)",
    ),
    (
        r"busy or unavailable",
        "another process holds the GPU, or its compute mode forbids use (see nvidia-smi -q)",
    ),
    (
        r"system not yet initialized",
        "the service that connects the GPUs is not running; start nvidia-fabricmanager",
    ),
    (
        r"uncorrectable (ECC|NVLink) error",
        "the GPU failed; start the process again, and have the GPU checked if it recurs",
    ),
    (
        r"\binitialization error\b",
        "CUDA was in use when this process was forked; start processes with spawn",
    ),
    (
        r"illegal memory access|unspecified launch failure|launch timed out|illegal instruction"
        r"|misaligned address|device-side assert|hardware stack error|invalid program counter"
        r"|the function failed to launch on the GPU|CU(BLAS|DNN)_STATUS_EXECUTION_FAILED"
        r"|DEVICE_RESET",
        "the GPU stopped with an error and this process can no longer use it; start it again",
    ),
    (
        r"CUDA (failure|error) 999\b|cudaErrorUnknown",
        "the driver failed, as it may after a suspend; restart the machine, and see dmesg",
    ),
    (
        r"cuDNN is (unavailable|not available)|CUDNN_STATUS_SUBLIBRARY",
        "the library cuDNN is missing or incomplete; run: pip install 'paligemma-edge[cuda]'",
    ),
    (
        r"fallback to CPU EP has been explicitly disabled",
        "CUDA did not start, or this ONNX Runtime has no CUDA kernel for a node of the graph",
    ),
)


def explain(error: Exception) -> str | None:
    """What a failure of CUDA, or of ONNX Runtime on it, means; None where it is not known.

    One line: CUDA's own error where ONNX Runtime quotes it, then what to do.
    """
    text = str(error)
    failure = _FAILURE.search(text)
    advice = meaning(text)
    if failure is None:
        return advice
    core = " ".join(failure[0].split())
    return core if advice is None else f"{core}; {advice}"


def meaning(text: str) -> str | None:
    """What an error text of CUDA means and what to do; None where it is not known."""
    return next((advice for pattern, advice in _MEANINGS if re.search(pattern, text)), None)
