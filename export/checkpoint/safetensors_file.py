"""The tensors of a safetensors file, still on disk.

The header is checked by the safetensors library: bounded length, known dtypes, offsets in range,
no overlap and no hole (https://github.com/huggingface/safetensors, "Format").
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx_ir as ir
import safetensors

from paligemma_edge.export.checkpoint.joined_file import JoinedFile
from paligemma_edge.export.checkpoint.name_list import join_names
from paligemma_edge.export.checkpoint.tensors import FLOAT64, FileTensor
from paligemma_edge.runtime.errors import CheckpointError

_DTYPES = {
    "F64": ir.DataType.FLOAT,  # rounded as it is read
    "F32": ir.DataType.FLOAT,
    "F16": ir.DataType.FLOAT16,
    "BF16": ir.DataType.BFLOAT16,
}
_OTHER_BYTES = {"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
# Of weights that were rounded to few bits, by whatever tool.
_QUANTIZED = ("I8", "U8", "I16", "I32", "I64", "F8", "F6", "F4")


def read_safetensors(
    path: Path, ignore: Callable[[str], bool] = lambda _: False
) -> dict[str, FileTensor]:
    """Read the header of a safetensors file: key to tensor, in the order of the file.

    Keys that `ignore` accepts are left out. Raises CheckpointError for a damaged file and for
    dtypes other than float32, float16 and bfloat16, and float64, which is read as float32.
    """
    try:
        joined = JoinedFile.open([path])
        with path.open("rb") as file:
            prefix = file.read(8)
        with safetensors.safe_open(path, framework="numpy") as header:
            slices = [(key, header.get_slice(key)) for key in header.offset_keys()]
            specs = [(key, part.get_dtype(), tuple(part.get_shape())) for key, part in slices]
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(
            f"{path} is not a sound safetensors file: {error}; download or save it again"
        ) from None
    tensors = _tensors(joined, 8 + struct.unpack("<Q", prefix)[0], specs, ignore)
    return {str(tensor.name): tensor for tensor in tensors}


def _tensors(
    file: JoinedFile,
    offset: int,
    specs: list[tuple[str, str, tuple[int, ...]]],
    ignore: Callable[[str], bool],
) -> Iterator[FileTensor]:
    """Tensors are stored end to end in the order of their offsets: the library has checked that."""
    for key, kind, shape in specs:
        if ignore(key) and kind in _OTHER_BYTES:
            offset += math.prod(shape) * _OTHER_BYTES[kind]
            continue
        if kind not in _DTYPES:
            raise _unknown_dtype(file, key, kind)
        double = kind == "F64"
        tensor = FileTensor(file, offset, _DTYPES[kind], shape, key, double=double)
        offset += tensor.size * FLOAT64.itemsize if double else tensor.nbytes
        if not ignore(key):
            yield tensor


def _unknown_dtype(file: JoinedFile, key: str, kind: str) -> CheckpointError:
    advice = "save it in one of those, with transformers' save_pretrained"
    if kind.startswith(_QUANTIZED):
        advice = (
            "it is quantized already: give the weights as they were before, and quantize the "
            "bundle by `paligemma-edge quantize`"
        )
    return CheckpointError(
        f"{file} holds {join_names([key])} as {kind}, wanted F32, BF16, F16 or F64; {advice}"
    )
