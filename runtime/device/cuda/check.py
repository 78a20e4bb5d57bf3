"""CUDA's libraries and ONNX Runtime's packages: loaded where they are here, advice where not.

Whether a GPU can run a graph is decided when a session is opened; `errors` says what a failure
means.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import re
from collections.abc import Sequence

from paligemma_edge.runtime.device.cuda.driver import Gpu, find_gpu, gpu_is_present
from paligemma_edge.runtime.device.ort import one_line, ort
from paligemma_edge.runtime.errors import DeviceError

__all__ = [
    "Gpu",
    "find_gpu",
    "gpu_is_present",
    "load_libraries",
    "package_advice",
    "require_cudnn",
    "session_advice",
]

# What `preload_dlls` prints for each library that it needs and cannot load from anywhere.
_NOT_LOADED = re.compile(r"^Failed to load (lib[^/:]+): ", re.MULTILINE)
_CUDNN = "libcudnn.so.9"  # of ONNX Runtime 1.30 and later
_GET = "run: pip install 'paligemma-edge[cuda]', or put their folder on LD_LIBRARY_PATH"


def load_libraries() -> tuple[str, ...]:
    """Load CUDA's libraries as ONNX Runtime finds them: pip's packages, then the system's.

    Returns the file names of those that could not be loaded. That is not an error yet: a build
    of ONNX Runtime may do without one of them. To be called once, and before other threads print:
    standard output is the whole process's.
    """
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        ort.preload_dlls()
    return tuple(_NOT_LOADED.findall(printed.getvalue()))


def require_cudnn() -> None:
    """DeviceError where cuDNN is not here; ONNX Runtime would miss it at the first convolution."""
    try:
        ctypes.CDLL(_CUDNN)
    except OSError as error:
        absent = str(error).startswith(f"{_CUDNN}: cannot open shared object file")
        reason = "is not here" if absent else f"does not load ({one_line(error)})"
        raise DeviceError(f"{_CUDNN}, which the vision encoder needs, {reason}; {_GET}") from None


def session_advice(missing: Sequence[str]) -> str:
    """What to do where ONNX Runtime opened a session without CUDA, and did not say why.

    `missing` is what `load_libraries` returned.
    """
    if missing:
        return f"libraries of CUDA that it needs are not here: {', '.join(missing)}; {_GET}"
    return (
        "check the driver with nvidia-smi, and that the CUDA and cuDNN that this ONNX Runtime was "
        "built for are installed; or choose device cpu"
    )


def package_advice() -> str:
    """What to do where ONNX Runtime has no CUDA: which of its packages are installed decides."""
    installed = {name for name in ("onnxruntime", "onnxruntime-gpu") if _installed(name)}
    both = "onnxruntime and onnxruntime-gpu are both installed and overwrite each other; "
    return (both if len(installed) == 2 else "") + (
        "run: pip uninstall onnxruntime onnxruntime-gpu && pip install 'paligemma-edge[cuda]'"
    )


def _installed(name: str) -> bool:
    import importlib.metadata  # slow, and not needed on a CPU

    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
