"""The GPU, as NVIDIA's driver reports it.

Knows the driver's library, which every CUDA program uses: a GPU that CUDA_VISIBLE_DEVICES hides
from it is hidden from CUDA too. Does not know ONNX Runtime.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from paligemma_edge.runtime.device.cuda.errors import meaning
from paligemma_edge.runtime.errors import DeviceError
from paligemma_edge.runtime.system.linux import available_memory

_LIBRARY = "libcuda.so.1"
_VISIBLE = "CUDA_VISIBLE_DEVICES"
# Values of cuda.h.
_NO_MEMORY, _NO_DEVICE = 2, 100
_INTEGRATED, _MAJOR, _MINOR = 18, 75, 76


@dataclass(frozen=True)
class Gpu:
    """A GPU that CUDA sees, and its driver."""

    name: str  # such as "NVIDIA L4"
    capability: tuple[int, int]  # compute capability, such as (8, 9)
    total_bytes: int
    free_bytes: int  # at that time, with CUDA's own memory for a process already taken
    driver: tuple[int, int]  # the newest CUDA that the driver supports, such as (13, 0)


def find_gpu(index: int = 0, *, library: ctypes.CDLL | None = None) -> Gpu:
    """The GPU at `index` in CUDA's order, as the driver reports it.

    The free memory of a GPU that shares the system's memory is what the system calls available:
    cuMemGetInfo leaves out what the system can reclaim, such as cached files. `library` is used
    instead of the driver's own, `libcuda.so.1` opened by ctypes.

    DeviceError says what is missing: the driver, a GPU, a GPU at `index`, or free memory.
    """
    driver = _Driver(_open() if library is None else library)
    driver.start()
    device = driver.device(index)
    name = driver.name(device)
    return Gpu(
        name=name,
        capability=(driver.attribute(_MAJOR, device), driver.attribute(_MINOR, device)),
        total_bytes=driver.total_bytes(device),
        free_bytes=_free_bytes(driver, device, name),
        driver=driver.version(),
    )


def gpu_is_present(*, library: ctypes.CDLL | None = None) -> bool:
    """Whether CUDA sees any GPU; `find_gpu` says why not."""
    try:
        driver = _Driver(_open() if library is None else library)
        driver.start()
        return driver.count() > 0
    except DeviceError:
        return False


def _open() -> ctypes.CDLL:
    try:
        return ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise DeviceError(
            f"NVIDIA's driver was not found ({error}); install it, or give a container its GPU: "
            "docker run --gpus all, on a Jetson --runtime nvidia"
        ) from None


def _free_bytes(driver: _Driver, device: int, name: str) -> int:
    with driver.context(device, name):
        free = driver.free_bytes()
    shared = driver.attribute(_INTEGRATED, device)
    return (available_memory() or free) if shared else free


class _Driver:
    """The few functions of cuda.h that are needed; each raises DeviceError where it fails."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def start(self) -> None:
        self._call("cuInit", 0, known={_NO_DEVICE: f"CUDA sees no GPU; {_how_to_show()}"})

    def version(self) -> tuple[int, int]:
        number = self._int("cuDriverGetVersion")
        return number // 1000, number % 1000 // 10

    def count(self) -> int:
        return self._int("cuDeviceGetCount")

    def device(self, index: int) -> int:
        count = self.count()
        if count == 0:
            raise DeviceError(f"CUDA sees no GPU; {_how_to_show()}")
        if not 0 <= index < count:
            seen = "GPU 0 alone" if count == 1 else f"GPUs 0 to {count - 1}"
            raise DeviceError(f"GPU {index} was requested, CUDA sees {seen}{_may_hide()}")
        return self._int("cuDeviceGet", index)

    def name(self, device: int) -> str:
        buffer = ctypes.create_string_buffer(256)
        self._call("cuDeviceGetName", buffer, len(buffer), device)
        return buffer.value.decode(errors="replace")

    def attribute(self, which: int, device: int) -> int:
        return self._int("cuDeviceGetAttribute", which, device)

    def total_bytes(self, device: int) -> int:
        total = ctypes.c_size_t()
        self._call("cuDeviceTotalMem_v2", ctypes.byref(total), device)
        return total.value

    def free_bytes(self) -> int:
        """Free memory in the current context."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value

    @contextlib.contextmanager
    def context(self, device: int, name: str) -> Iterator[None]:
        """Make the context that CUDA's runtime uses too current within the block."""
        full = f"{name} has too little free memory for CUDA to start; end what else uses it"
        handle, popped = ctypes.c_void_p(), ctypes.c_void_p()
        self._call(
            "cuDevicePrimaryCtxRetain", ctypes.byref(handle), device, known={_NO_MEMORY: full}
        )
        try:
            self._call("cuCtxPushCurrent_v2", handle)
            try:
                yield
            finally:
                self._call("cuCtxPopCurrent_v2", ctypes.byref(popped))
        finally:
            self._call("cuDevicePrimaryCtxRelease_v2", device)

    def _int(self, name: str, *rest: int) -> int:
        """The integer that a function writes to its first argument."""
        value = ctypes.c_int()
        self._call(name, ctypes.byref(value), *rest)
        return value.value

    def _call(self, name: str, *arguments: object, known: Mapping[int, str] = {}) -> None:
        try:
            code = getattr(self._library, name)(*arguments)
        except AttributeError:
            raise DeviceError(f"NVIDIA's driver has no {name}; install a newer driver") from None
        if code in known:
            raise DeviceError(known[code])
        if code != 0:
            raise DeviceError(f"{name} of NVIDIA's driver failed: {self._text(code)}")

    def _text(self, code: int) -> str:
        text = ctypes.c_char_p()
        self._library.cuGetErrorString(code, ctypes.byref(text))
        message = f"CUDA error {code}, {(text.value or b'without a text').decode(errors='replace')}"
        advice = meaning(message)
        return message if advice is None else f"{message}; {advice}"


def _how_to_show() -> str:
    value = os.environ.get(_VISIBLE)
    if value is None:
        return "see whether nvidia-smi lists one; a container needs docker run --gpus all"
    hides = "hides every GPU" if value.strip() in ("", "-1") else "may hide the GPU"
    return f"{_VISIBLE} is {value!r} and {hides}: unset it"


def _may_hide() -> str:
    value = os.environ.get(_VISIBLE)
    return "" if value is None else f"; {_VISIBLE} is {value!r} and may hide others"
