"""A stand-in for the driver that a machine without a GPU lacks."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from ctypes import CFUNCTYPE, POINTER, c_char, c_char_p, c_int, c_size_t, c_uint, c_void_p
from typing import Any, TypeAlias

Out: TypeAlias = "ctypes._Pointer[Any]"  # where a call writes its answer

HANDLE = 0x7F0123456789  # of a context: more than 32 bits, as real ones have
TEXTS: Mapping[int, bytes] = {
    2: b"out of memory",
    3: b"initialization error",
    34: b"CUDA driver is a stub library",
    100: b"no CUDA-capable device is detected",
    803: b"system has unsupported display driver / cuda driver combination",
}


class Driver:
    """A driver with GPUs; `failing` are its calls that do, each with its error."""

    def __init__(
        self,
        gpus: int = 1,
        *,
        integrated: bool = False,
        version: int = 13010,
        failing: Mapping[str, int] | None = None,
    ) -> None:
        self.gpus, self.integrated, self.version = gpus, integrated, version
        self.failing = failing or {}
        self.current: list[int | None] = []
        self.retained: list[int] = []

    def __getattr__(self, name: str) -> Callable[..., int]:
        """A call of cuda.h, made by way of C with the types that it has there."""
        if name not in _CALLS:
            raise AttributeError(name)
        types, method = _CALLS[name]
        code = self.failing.get(name, 0)
        return CFUNCTYPE(c_int, *types)(lambda *given: code or method(self, *given) or 0)

    def count(self, out: Out) -> None:
        out[0] = self.gpus

    def age(self, out: Out) -> None:
        out[0] = self.version

    def get(self, out: Out, index: int) -> None:
        out[0] = index + 10

    def name(self, out: Out, room: int, device: int) -> None:
        text = f"NVIDIA L{device}\0".encode()[:room]
        ctypes.memmove(out, text, len(text))

    def attribute(self, out: Out, which: int, device: int) -> None:
        out[0] = {75: 8, 76: 9, 18: int(self.integrated)}[which]

    def total(self, out: Out, device: int) -> None:
        out[0] = 24 << 30

    def retain(self, out: Out, device: int) -> None:
        self.retained.append(device)
        out[0] = HANDLE

    def release(self, device: int) -> None:
        self.retained.remove(device)

    def push(self, handle: int | None) -> None:
        self.current.append(handle)

    def pop(self, out: Out) -> None:
        out[0] = self.current.pop()

    def memory(self, free: Out, total: Out) -> int:
        if self.current != [HANDLE]:
            return 201  # invalid device context
        free[0], total[0] = 20 << 30, 24 << 30
        return 0

    def text(self, code: int, out: Out) -> int:
        out[0] = TEXTS.get(code)
        return 0 if code in TEXTS else 1


_CALLS: Mapping[str, tuple[tuple[Any, ...], Any]] = {
    "cuInit": ((c_uint,), lambda driver, flags: 0),
    "cuDeviceGetCount": ((POINTER(c_int),), Driver.count),
    "cuDriverGetVersion": ((POINTER(c_int),), Driver.age),
    "cuDeviceGet": ((POINTER(c_int), c_int), Driver.get),
    "cuDeviceGetName": ((POINTER(c_char), c_int, c_int), Driver.name),
    "cuDeviceGetAttribute": ((POINTER(c_int), c_int, c_int), Driver.attribute),
    "cuDeviceTotalMem_v2": ((POINTER(c_size_t), c_int), Driver.total),
    "cuDevicePrimaryCtxRetain": ((POINTER(c_void_p), c_int), Driver.retain),
    "cuDevicePrimaryCtxRelease_v2": ((c_int,), Driver.release),
    "cuCtxPushCurrent_v2": ((c_void_p,), Driver.push),
    "cuCtxPopCurrent_v2": ((POINTER(c_void_p),), Driver.pop),
    "cuMemGetInfo_v2": ((POINTER(c_size_t), POINTER(c_size_t)), Driver.memory),
    "cuGetErrorString": ((c_int, POINTER(c_char_p)), Driver.text),
}
