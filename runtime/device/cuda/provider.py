"""What ONNX Runtime's CUDA library is made of: the libraries that it needs, the GPUs it serves.

Knows ELF and the headers of CUDA's fat binaries, and reads the file without loading it, so that
a release, a build of one's own and a Jetson's are judged alike, by what they are. Asks no device.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_FILE = "capi/libonnxruntime_providers_cuda.so"
_ELF64_LITTLE = b"\x7fELF\x02\x01"
_NVIDIAS = ("libcu", "libnv")  # the others are the system's own
_NEEDED = 1  # the tag of a library's name in .dynamic
# A fat binary is a header, then entries, each with a header of its own and code of one kind for
# one architecture. NVIDIA names the magic in fatbinary.h; the kinds are what cuobjdump tells.
_MAGIC = struct.pack("<I", 0xBA55ED50)
_PTX, _MACHINE_CODE = 1, 2


@dataclass(frozen=True)
class Provider:
    """What the CUDA library of an ONNX Runtime asks of a machine."""

    libraries: tuple[str, ...]  # NVIDIA's, that the system must find by these file names
    machine_code: frozenset[tuple[int, int]]  # compute capabilities that it has code for
    ptx: frozenset[tuple[int, int]]  # and those that a driver can still compile for newer GPUs

    @property
    def cuda(self) -> int | None:
        """The major version of the CUDA that it was built with; None: it does not tell."""
        versions = [name.partition(".so.")[2] for name in self.libraries if "cudart" in name]
        major = versions[0].partition(".")[0] if versions else ""
        return int(major) if major.isdecimal() else None

    def serves(self, capability: tuple[int, int]) -> bool:
        """Whether a GPU can run its code. True also where the file tells of no code at all.

        Code for X.y runs on X.z with z >= y, and PTX is compiled for any GPU as new or newer
        (CUDA C++ Programming Guide, "Binary Compatibility" and "PTX Compatibility").
        """
        if not self.machine_code | self.ptx:
            return True
        major, minor = capability
        return any(m == major and n <= minor for m, n in self.machine_code) or any(
            made <= capability for made in self.ptx
        )


def read_provider(package: Path) -> Provider | None:
    """Read the CUDA library in the folder of the package onnxruntime; None: there is none to read.

    A file of a form that is not known here is no error: ONNX Runtime has the last word on it.
    """
    try:
        with (
            (package / _FILE).open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            return _read(data)
    except (OSError, ValueError, LookupError, OverflowError, struct.error):
        return None


def _read(data: mmap.mmap) -> Provider:
    sections = _sections(data)
    names, code = sections[".dynstr"], sections.get(".nv_fatbin", (0, 0))
    found = frozenset(_entries(data, *code))
    return Provider(
        libraries=tuple(
            name
            for tag, place in _pairs(data, *sections[".dynamic"])
            if tag == _NEEDED and (name := _text(data, names[0] + place)).startswith(_NVIDIAS)
        ),
        machine_code=frozenset(made for kind, made in found if kind == _MACHINE_CODE),
        ptx=frozenset(made for kind, made in found if kind == _PTX),
    )


def _sections(data: mmap.mmap) -> dict[str, tuple[int, int]]:
    """Where each section starts in the file and how many bytes it has, by its name."""
    if data[:6] != _ELF64_LITTLE:
        raise ValueError("not a library of 64-bit Linux")
    (table,) = struct.unpack_from("<Q", data, 40)
    size, count, names = struct.unpack_from("<HHH", data, 58)
    headers = [struct.unpack_from("<I20xQQ", data, table + i * size) for i in range(count)]
    if names >= count:
        raise ValueError("its sections have no names")
    return {_text(data, headers[names][1] + name): (at, room) for name, at, room in headers}


def _pairs(data: mmap.mmap, start: int, size: int) -> Iterator[tuple[int, int]]:
    for place in range(start, start + size - 15, 16):
        yield struct.unpack_from("<qQ", data, place)


def _text(data: mmap.mmap, start: int) -> str:
    end = data.find(b"\0", start)
    if end < 0:
        raise ValueError("a name without an end")
    return data[start:end].decode("ascii")


def _entries(data: mmap.mmap, start: int, size: int) -> Iterator[tuple[int, tuple[int, int]]]:
    """The kind and the compute capability of each entry of each fat binary."""
    end = start + size
    place = data.find(_MAGIC, start, end)
    while place >= 0:
        header, length = struct.unpack_from("<HQ", data, place + 6)
        if not header:
            raise ValueError("a fat binary without an end")
        yield from _entries_of_one(data, place + header, place + header + length)
        place = data.find(_MAGIC, place + header + length, end)  # zeros may lie between


def _entries_of_one(data: mmap.mmap, place: int, end: int) -> Iterator[tuple[int, tuple[int, int]]]:
    while place < end:
        kind, header, length, made = struct.unpack_from("<H2xIQ12xI", data, place)
        if not header:
            raise ValueError("an entry without an end")
        yield kind, divmod(made, 10)
        place += header + length
