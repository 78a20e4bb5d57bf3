"""The weights of PaliGemma's mask decoder, from `vae-oid.npz`.

Knows the names and shapes of its arrays
(big_vision, evaluators/proj/paligemma/transfers/segmentation.py).
"""

from __future__ import annotations

import contextlib
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.lib import format as npy

from paligemma_edge.export.checkpoint.content import require_content
from paligemma_edge.export.checkpoint.mask_decoder_file import MASK_DECODER_FILE
from paligemma_edge.export.checkpoint.npz import NpyHeader, read_header
from paligemma_edge.runtime.errors import CheckpointError

RESIDUAL_BLOCKS = ("decoder.2", "decoder.3")
CODEBOOK = "_vq_vae._embedding"

SHAPES: Mapping[str, tuple[int, ...]] = {
    CODEBOOK: (128, 512),
    "decoder.0.weight": (128, 512, 1, 1),
    **{f"{b}.net.{i}.weight": (128, 128, 3, 3) for b in RESIDUAL_BLOCKS for i in (0, 2)},
    **{f"{b}.net.4.weight": (128, 128, 1, 1) for b in RESIDUAL_BLOCKS},
    "decoder.4.weight": (128, 128, 4, 4),
    "decoder.6.weight": (128, 64, 4, 4),
    "decoder.8.weight": (64, 32, 4, 4),
    "decoder.10.weight": (32, 16, 4, 4),
    "decoder.12.weight": (1, 16, 1, 1),
    "decoder.0.bias": (128,),
    **{f"{b}.net.{i}.bias": (128,) for b in RESIDUAL_BLOCKS for i in (0, 2, 4)},
    "decoder.4.bias": (128,),
    "decoder.6.bias": (64,),
    "decoder.8.bias": (32,),
    "decoder.10.bias": (16,),
    "decoder.12.bias": (1,),
}

_ADVICE = f"give PaliGemma's {MASK_DECODER_FILE}, or --no-mask-decoder"


def read_mask_weights(path: str | os.PathLike[str]) -> dict[str, ir.TensorProtocol]:
    """Read and check the arrays of `vae-oid.npz`; those of the VAE's encoder are skipped."""
    require_content(Path(path))
    with _as_checkpoint_errors(path), zipfile.ZipFile(path) as archive:
        stored = [name for name in SHAPES if f"{name}.npy" in archive.NameToInfo]
        # Headers first: an array is as large as its header says, whatever the file's size.
        headers = {name: read_header(archive, f"{name}.npy") for name in stored}
        _require(path, _problems(headers))
        arrays = {name: _array(archive, name) for name in stored}
    _require(path, [f"{n} is not finite" for n, a in arrays.items() if not np.isfinite(a).all()])
    return {name: ir.tensor(array, name=name) for name, array in arrays.items()}


@contextlib.contextmanager
def _as_checkpoint_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # zipfile and numpy raise some ten classes for damaged files
        reason = (isinstance(error, OSError) and error.strerror) or "not an npz archive"
        raise CheckpointError(f"cannot read mask decoder {path}: {reason}; {_ADVICE}") from None


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(f"{name}.npy") as member:
        return npy.read_array(member, allow_pickle=False)


def _problems(headers: Mapping[str, NpyHeader]) -> list[str]:
    problems = [f"{name} is missing" for name in sorted(set(SHAPES) - set(headers))]
    for name, header in sorted(headers.items()):
        if header.shape != SHAPES[name]:
            problems.append(f"{name} is {list(header.shape)}, wanted {list(SHAPES[name])}")
        elif header.dtype not in (np.float32, np.float16):
            problems.append(f"{name} is {header.dtype}, wanted float32 or float16")
    return problems


def _require(path: str | os.PathLike[str], problems: list[str]) -> None:
    if problems:
        raise CheckpointError(
            f"mask decoder {path} is not PaliGemma's {MASK_DECODER_FILE}: "
            f"{'; '.join(problems)}; {_ADVICE}"
        )
