"""Arrays of an npz archive that stay on disk until they are used.

An npz is a zip of npy files. Headers are read when it is opened; a stored member is then read
by range, a compressed one as a stream, which restarts where a reader goes back. Knows the
two formats and no model. Nothing is unpickled.
"""

from __future__ import annotations

import dataclasses
import io
import math
import struct
import threading
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx_ir as ir
from numpy.lib import format as npy

from paligemma_edge.export.checkpoint.joined_file import JoinedFile
from paligemma_edge.export.checkpoint.name_list import join_names
from paligemma_edge.export.checkpoint.other_formats import content_of
from paligemma_edge.export.checkpoint.tensors import (
    FLOAT64,
    NUMPY_DTYPES,
    Array,
    CheckpointTensor,
    ComputedTensor,
    FileTensor,
    as_float32,
)
from paligemma_edge.runtime.errors import CheckpointError
from paligemma_edge.runtime.printable import short_line

_MOST_HEADER_BYTES = 8192
_DTYPES: Mapping[np.dtype[Any], ir.DataType] = {
    **{dtype: kind for kind, dtype in NUMPY_DTYPES.items() if kind != ir.DataType.BFLOAT16},
    np.dtype("V2"): ir.DataType.BFLOAT16,
    np.dtype("<u2"): ir.DataType.BFLOAT16,
    FLOAT64: ir.DataType.FLOAT,  # rounded as it is read
}
_READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, ..., lengths of the name and of the extra
_ADVICE = "download it again, or save it again with numpy.savez"


@dataclass(frozen=True)
class NpyHeader:
    """The header of an npy file."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran_order: bool
    size: int  # bytes of the header


def read_npz(paths: Sequence[Path], folder: str = "") -> dict[str, CheckpointTensor]:
    """Read the headers of an archive: name, without .npy, to array, in the order of the file.

    Where names begin with `folder`, they are given without it, and the others are skipped.
    bfloat16 is stored as words without a type, or as uint16; float64 is read as float32. Raises
    CheckpointError for a damaged archive, and for arrays of other dtypes.
    """
    try:
        file = JoinedFile.open(paths)
        archive = zipfile.ZipFile(file.reader())
        members = _members(archive, folder)
        return {name: _tensor(file, archive, name, member) for name, member in members.items()}
    except CheckpointError:
        raise
    except Exception as error:  # zipfile and numpy raise some ten classes for damaged files
        missing = f"; or a part after {paths[-1].name} is missing" if len(paths) > 1 else ""
        kind = content_of(paths[0])
        problem = f"is {kind}" if kind else f"is not a sound npz archive: {_reason(error)}"
        raise CheckpointError(f"{paths[0]} {problem}; {_ADVICE}{missing}") from None


def _members(archive: zipfile.ZipFile, folder: str) -> dict[str, zipfile.ZipInfo]:
    if any(m.filename.endswith("data.pkl") for m in archive.infolist()):
        raise zipfile.BadZipFile("it holds a pickle, as torch.save writes it")
    members = {m.filename.removesuffix(".npy"): m for m in archive.infolist()}
    if len(members) < len(archive.infolist()):
        raise zipfile.BadZipFile("two arrays of one name")
    inside = {name: member for name, member in members.items() if name.startswith(folder)}
    return {name.removeprefix(folder): member for name, member in (inside or members).items()}


def read_header(archive: zipfile.ZipFile, member: str) -> NpyHeader:
    """Read the header of an npy file in an archive; reads at most 8 KiB of it.

    Raises what zipfile and numpy raise for a damaged one.
    """
    with archive.open(member) as file:
        start = io.BytesIO(file.read(_MOST_HEADER_BYTES))
    shape, fortran_order, dtype = _READERS[npy.read_magic(start)](start)
    if min(shape, default=0) < 0:
        raise ValueError(f"{member} has a negative size")
    return NpyHeader(shape, dtype, fortran_order, start.tell())


def _tensor(
    file: JoinedFile, archive: zipfile.ZipFile, name: str, member: zipfile.ZipInfo
) -> CheckpointTensor:
    header = read_header(archive, member.filename)
    dtype = _dtype(file, name, header)
    needed = header.size + math.prod(header.shape) * header.dtype.itemsize
    if member.file_size != needed:
        raise CheckpointError(
            f"{file} holds {name} in {member.file_size} bytes, its shape {list(header.shape)} "
            f"needs {needed}; {_ADVICE}"
        )
    if not header.fortran_order:
        return _values(file, archive, member, header)
    values = _values(file, archive, member, dataclasses.replace(header, shape=header.shape[::-1]))
    return ComputedTensor(lambda: values.array().T, dtype, header.shape, name)


def _values(
    file: JoinedFile, archive: zipfile.ZipFile, member: zipfile.ZipInfo, header: NpyHeader
) -> CheckpointTensor:
    """The values in the order in which they are stored."""
    name, dtype = member.filename.removesuffix(".npy"), _DTYPES[header.dtype]
    double = header.dtype == FLOAT64
    if member.compress_type == zipfile.ZIP_STORED:
        start = _data_start(file, member)
        if member.compress_size != member.file_size or start + member.file_size > file.size:
            raise zipfile.BadZipFile(f"{name} is cut")
        return FileTensor(file, start + header.size, dtype, header.shape, name, double=double)
    if member.compress_type == zipfile.ZIP_DEFLATED:
        stream = _Stream(archive, member)
        return DeflatedTensor(stream, header.size, dtype, header.shape, name, double=double)
    raise CheckpointError(
        f"{file} holds {name} compressed by method {member.compress_type}, wanted stored or "
        f"deflated members; {_ADVICE}"
    )


def _dtype(file: JoinedFile, name: str, header: NpyHeader) -> ir.DataType:
    if header.dtype in _DTYPES:
        return _DTYPES[header.dtype]
    found = f"{file} holds {join_names([name])} as"
    if header.dtype.hasobject:
        raise CheckpointError(
            f"{found} Python objects, a pickle, which can run code and is not read, wanted arrays "
            "of numbers; save the weights by numpy.savez, each as an array of its own"
        )
    wanted = "wanted float32, float16, bfloat16 or float64"
    advice = _ADVICE
    if header.dtype.kind in "iub":
        advice = "it is quantized, or holds no weights: give the npz as big_vision saves it"
    raise CheckpointError(f"{found} {short_line(str(header.dtype))}, {wanted}; {advice}")


def _data_start(file: JoinedFile, member: zipfile.ZipInfo) -> int:
    local = bytearray(_LOCAL_HEADER.size)
    file.read_into(member.header_offset, memoryview(local))
    _, name, extra = _LOCAL_HEADER.unpack(local)
    return member.header_offset + _LOCAL_HEADER.size + int(name) + int(extra)


class _Stream:
    """A compressed member, read from where the last reader stopped, or from its start."""

    def __init__(self, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
        self._archive, self._member = archive, member
        self._lock = threading.Lock()
        self._file: zipfile.ZipExtFile | None = None

    def read_into(self, offset: int, view: memoryview) -> int:
        with self._lock:
            if self._file is None:
                self._file = cast(zipfile.ZipExtFile, self._archive.open(self._member))
            self._file.seek(offset)
            return self._file.readinto(view)


class DeflatedTensor(CheckpointTensor):
    """A compressed array. Reading in order is one pass; going back restarts it."""

    def __init__(
        self,
        stream: _Stream,
        offset: int,
        dtype: ir.DataType,
        shape: tuple[int, ...],
        name: str,
        *,
        double: bool = False,
    ) -> None:
        super().__init__(dtype, shape, name)
        self._stream, self._offset, self._double = stream, offset, double

    def read(self, start: int, stop: int) -> Array:
        """Decompress up to `stop`."""
        array = np.empty(stop - start, FLOAT64 if self._double else NUMPY_DTYPES[self.dtype])
        view = array.view(np.uint8).data
        try:
            done = self._stream.read_into(self._offset + start * array.itemsize, view)
        except (OSError, zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise CheckpointError(
                f"{self.name} cannot be decompressed: {_reason(error)}; {_ADVICE}"
            ) from None
        if done < len(view):
            raise CheckpointError(f"{self.name} ends early in its npz archive; {_ADVICE}")
        return as_float32(array, str(self.name)) if self._double else array


def _reason(error: Exception) -> str:
    named = isinstance(error, OSError) and error.strerror
    return named or " ".join(str(error).split())[:200] or type(error).__name__
