"""Random tensors streamed into safetensors files, all from one block of random numbers.

A tensor starts in the block at an offset from its internal name (so that the key layout changes no
value), and repeats the block as often as it needs, scaled by its fan-in.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt

from paligemma_edge.export.checkpoint.tensor_names import Layout, source_key
from paligemma_edge.export.checkpoint.tensor_shapes import Shape

DType = Literal["float32", "bfloat16", "float16"]
BLOCK = 4_194_301  # odd, so that a repeated block gives no two equal rows
_CODES: Mapping[DType, str] = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_KINDS: Mapping[DType, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype("<f2"),
}


def checkpoint_bytes(shapes: Mapping[str, Shape], dtype: DType) -> int:
    """Size of all tensors."""
    return sum(map(math.prod, shapes.values())) * _KINDS[dtype].itemsize


@dataclass(frozen=True, kw_only=True)
class TensorWriter:
    """Writes tensors into a folder; `report` is called with the bytes of each write."""

    directory: Path
    dtype: DType
    layout: Layout
    report: Callable[[int], object]

    def write(self, shapes: Mapping[str, Shape], shards: int, seed: int) -> None:
        """Write all tensors, and an index if there are several files."""
        block = np.random.default_rng(seed).standard_normal(BLOCK, dtype=np.float32)
        plan = _plan(shapes, shards)
        for file, part in plan.items():
            self._write_shard(file, part, np.concatenate([block, block]))
        if shards > 1:
            self._write_index(plan)

    def _write_shard(
        self, file: str, shapes: Mapping[str, Shape], block: npt.NDArray[np.float32]
    ) -> None:
        with (self.directory / file).open("wb") as stream:
            stream.write(self._header(shapes))
            for name, shape in shapes.items():
                for chunk in _values(name, shape, block, _KINDS[self.dtype]):
                    stream.write(chunk.view(np.uint8).data)
                    self.report(chunk.nbytes)

    def _header(self, shapes: Mapping[str, Shape]) -> bytes:
        """The bytes before the data; see the README of huggingface/safetensors."""
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, shape in shapes.items():
            start, end = end, end + math.prod(shape) * _KINDS[self.dtype].itemsize
            header[source_key(name, self.layout)] = {
                "dtype": _CODES[self.dtype],
                "shape": shape,
                "data_offsets": [start, end],
            }
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text

    def _write_index(self, plan: Mapping[str, Mapping[str, Shape]]) -> None:
        sizes = [checkpoint_bytes(shapes, self.dtype) for shapes in plan.values()]
        weight_map = {source_key(name, self.layout): file for file in plan for name in plan[file]}
        index = {"metadata": {"total_size": sum(sizes)}, "weight_map": weight_map}
        path = self.directory / "model.safetensors.index.json"
        path.write_text(json.dumps(index, indent=2), encoding="utf-8")


def _plan(shapes: Mapping[str, Shape], shards: int) -> dict[str, dict[str, Shape]]:
    """Divide the tensors among files, in order, with about as many elements in each."""
    if shards == 1:
        return {"model.safetensors": dict(shapes)}
    total, before = sum(map(math.prod, shapes.values())), 0
    files = [f"model-{i:05d}-of-{shards:05d}.safetensors" for i in range(1, shards + 1)]
    plan: dict[str, dict[str, Shape]] = {}
    for name, shape in shapes.items():
        plan.setdefault(files[before * shards // total], {})[name] = shape
        before += math.prod(shape)
    return plan


def _values(
    name: str, shape: Shape, block: npt.NDArray[np.float32], kind: np.dtype[Any]
) -> Iterator[npt.NDArray[Any]]:
    """Flat values of a tensor in chunks; only the first is computed."""
    left = math.prod(shape)
    start = zlib.crc32(name.encode()) % BLOCK
    scale, mean = _distribution(name, shape)
    part = block[start : start + min(left, BLOCK)] * np.float32(scale) + np.float32(mean)
    part = part.astype(kind)
    while left > 0:
        yield part[:left]
        left -= len(part)


def _distribution(name: str, shape: Shape) -> tuple[float, float]:
    """Standard deviation and mean: rows of length one, gains near one, small biases."""
    if len(shape) > 1:
        return 1 / math.sqrt(math.prod(shape[1:])), 0.0
    gain = name.startswith("vision.") and "norm" in name and name.endswith(".weight")
    return 0.05, 1.0 if gain else 0.0  # Gemma's norms store their gain minus one
