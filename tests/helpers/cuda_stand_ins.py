"""Stand-ins for what a machine without a GPU lacks: a driver, and a CUDA library to read."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Iterable, Mapping
from ctypes import CFUNCTYPE, POINTER, c_char, c_char_p, c_int, c_size_t, c_uint, c_void_p
from pathlib import Path
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


CODE, PTX = 2, 1
CUDA_13 = ("libcublasLt.so.13", "libcublas.so.13", "libcudart.so.13", "libcuda.so.1", "libc.so.6")
EVERY = ((CODE, 75), (CODE, 80), (CODE, 120))


def make_package(
    folder: Path,
    needed: Iterable[str] = CUDA_13,
    code: Iterable[Iterable[tuple[int, int]]] = (EVERY, EVERY),
) -> Path:
    """A folder like the package onnxruntime's with a CUDA library that holds no more than that."""
    (folder / "capi").mkdir(parents=True)
    (folder / "capi/libonnxruntime_providers_cuda.so").write_bytes(_library(needed, code))
    return folder


def _library(needed: Iterable[str], code: Iterable[Iterable[tuple[int, int]]]) -> bytes:
    names, dynamic = b"\0", b""
    for name in needed:
        dynamic += struct.pack("<qQ", 1, len(names))
        names += name.encode() + b"\0"
    fat = b"".join(_fat(entries) + bytes(8) for entries in code)
    sections = [b"", names, dynamic + bytes(16), fat, b"\0.dynstr\0.dynamic\0.nv_fatbin\0.names\0"]
    places = [64 + sum(map(len, sections[:i])) for i in range(len(sections))]
    header = b"\x7fELF\x02\x01" + bytes(34)
    header += struct.pack("<Q10xHHH", places[4] + len(sections[4]), 64, 5, 4)
    table = b"".join(
        struct.pack("<I20xQQ24x", name, place, len(section))
        for name, place, section in zip((0, 1, 9, 18, 29), places, sections, strict=True)
    )
    return header + b"".join(sections) + table


def _fat(entries: Iterable[tuple[int, int]]) -> bytes:
    body = b"".join(
        struct.pack("<HHIQ12xI32x", kind, 0x101, 64, 24, made) + b"code" * 6
        for kind, made in entries
    )
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(body)) + body
