"""Whether a GPU can be used here, and if not, what is missing.

Knows what ONNX Runtime's CUDA library asks of the machine. The GPU is cuda_driver's, the file
cuda_provider's, the meaning of an error cuda_errors'.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
from collections.abc import Mapping
from pathlib import Path

from paligemma_edge.runtime.device.cuda.driver import Gpu, find_gpu, gpu_is_present
from paligemma_edge.runtime.device.cuda.errors import explain
from paligemma_edge.runtime.device.cuda.provider import Provider, read_provider
from paligemma_edge.runtime.device.ort import ort
from paligemma_edge.runtime.errors import DeviceError

__all__ = [
    "Gpu",
    "check_gpu",
    "explain",
    "find_gpu",
    "gpu_is_present",
    "load_libraries",
    "package_advice",
]

# It comes with the GPU's driver and from nowhere else: find_gpu has told of it.
_DRIVERS_OWN = "libcuda.so"
# The provider opens it when a convolution runs, and does not name it among what it needs.
_CUDNN = "libcudnn.so.9"
# NVIDIA's first driver for each CUDA; newer minor versions of CUDA run on it too
# (CUDA Compatibility, "Minor Version Compatibility").
_FIRST_DRIVER: Mapping[int, str] = {12: "R525", 13: "R580"}
_PIP_CUDA = 13  # the CUDA that the extra [cuda] brings


def load_libraries() -> None:
    """Load CUDA's libraries as ONNX Runtime finds them: pip's packages, then the system's.

    DeviceError names each one that cannot be loaded.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
        ort.preload_dlls()
    provider = _provider()
    if provider is None:
        return
    missing = [told for name in _wanted(provider) if (told := _missing(name)) is not None]
    if missing:
        raise DeviceError(
            f"ONNX Runtime {ort.__version__} needs libraries of CUDA{_major(provider)} that are "
            f"not here: {', '.join(missing)}; {_how_to_get(provider)}"
        )


def check_gpu(gpu: Gpu) -> None:
    """See that this ONNX Runtime can run on a GPU, as far as its file tells.

    DeviceError: the driver is too old for its CUDA, or it has no code for the GPU.
    """
    provider = _provider()
    if provider is None:
        return
    if provider.cuda is not None and gpu.driver[0] < provider.cuda:
        first = _FIRST_DRIVER.get(provider.cuda)
        raise DeviceError(
            f"the driver of {gpu.name} serves CUDA up to {_dotted(gpu.driver)}, "
            f"ONNX Runtime {ort.__version__} needs CUDA {provider.cuda}; install "
            + (f"NVIDIA's driver {first} or newer" if first else "a newer NVIDIA driver")
        )
    if not provider.serves(gpu.capability):
        made = ", ".join(map(_dotted, sorted(provider.machine_code | provider.ptx)))
        major, minor = gpu.capability
        raise DeviceError(
            f"{gpu.name} has compute capability {_dotted(gpu.capability)}, and "
            f"ONNX Runtime {ort.__version__} has code for {made} alone; use another GPU, or build "
            f"ONNX Runtime with CMAKE_CUDA_ARCHITECTURES={major}{minor}"
        )


def package_advice() -> str:
    """What to do where ONNX Runtime has no CUDA: which of its packages are installed decides."""
    installed = {name for name in ("onnxruntime", "onnxruntime-gpu") if _installed(name)}
    both = "onnxruntime and onnxruntime-gpu are both installed and overwrite each other; "
    return (both if len(installed) == 2 else "") + (
        "run: pip uninstall onnxruntime onnxruntime-gpu && pip install 'paligemma-edge[cuda]'"
    )


def _provider() -> Provider | None:
    return read_provider(Path(ort.__file__).parent)


def _wanted(provider: Provider) -> list[str]:
    named = [name for name in provider.libraries if not name.startswith(_DRIVERS_OWN)]
    return named if any("cudnn" in name for name in named) else [*named, _CUDNN]


def _missing(name: str) -> str | None:
    """A library's name, with the reason where it is there and yet does not load."""
    try:
        ctypes.CDLL(name)
    except OSError as error:
        absent = str(error).startswith(f"{name}: cannot open shared object file")
        return name if absent else f"{name} ({' '.join(str(error).split())[:200]})"
    return None


def _how_to_get(provider: Provider) -> str:
    path = "put their folder on LD_LIBRARY_PATH"
    if provider.cuda != _PIP_CUDA:
        return f"install CUDA{_major(provider)} and cuDNN 9, or {path}"
    return f"run: pip install 'paligemma-edge[cuda]', or {path}"


def _major(provider: Provider) -> str:
    return "" if provider.cuda is None else f" {provider.cuda}"


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def _installed(name: str) -> bool:
    import importlib.metadata  # which a processor needs not

    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
