"""The mask VQ-VAE's decoder in plain numpy: codes to a mask without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from samples.shapes.scoring import MaskDecoder

Array = NDArray[np.float32]
_UPS = (4, 6, 8, 10)


def load(path: Path) -> MaskDecoder:
    """The decoder of a `vae-oid.npz`, with a cache of decoded masks."""
    with np.load(path) as file:
        arrays = {name: file[name].astype(np.float32) for name in file.files}

    @lru_cache(maxsize=4096)
    def cached(codes: tuple[int, ...]) -> Array:
        return decode(arrays, codes)

    return lambda codes: cached(tuple(codes))


def decode(arrays: Mapping[str, Array], codes: Sequence[int]) -> Array:
    """16 codes to a mask, [64, 64], about -1 to 1."""
    x = arrays["_vq_vae._embedding"][list(codes)].T.reshape(-1, 4, 4)
    x = _relu(_layer(arrays, "decoder.0", x))
    for block in ("decoder.2", "decoder.3"):
        inner = _relu(_layer(arrays, f"{block}.net.0", x))
        x = x + _layer(arrays, f"{block}.net.4", _relu(_layer(arrays, f"{block}.net.2", inner)))
    for index in _UPS:
        x = _relu(_grow(x, arrays[f"decoder.{index}.weight"], arrays[f"decoder.{index}.bias"]))
    mask: Array = _layer(arrays, "decoder.12", x)[0]
    return mask


def _relu(x: Array) -> Array:
    return np.maximum(x, 0)


def _layer(arrays: Mapping[str, Array], name: str, x: Array) -> Array:
    return _convolve(x, arrays[f"{name}.weight"], arrays[f"{name}.bias"])


def _convolve(x: Array, weight: Array, bias: Array) -> Array:
    """A convolution that keeps the size; weight [out, in, k, k]."""
    kernel = weight.shape[-1]
    padded = np.pad(x, ((0, 0), (kernel // 2,) * 2, (kernel // 2,) * 2))
    windows = sliding_window_view(padded, (kernel, kernel), axis=(1, 2))
    out: Array = np.tensordot(weight, windows, axes=((1, 2, 3), (0, 3, 4)))
    return out + bias[:, None, None]


def _grow(x: Array, weight: Array, bias: Array) -> Array:
    """A transposed convolution, kernel 4, stride 2, padding 1; weight [in, out, 4, 4]."""
    spread = np.zeros((x.shape[0], 2 * x.shape[1] + 3, 2 * x.shape[2] + 3), dtype=np.float32)
    spread[:, 2:-2:2, 2:-2:2] = x
    windows = sliding_window_view(spread, (4, 4), axis=(1, 2))
    flipped = weight[:, :, ::-1, ::-1]
    out: Array = np.tensordot(flipped, windows, axes=((0, 2, 3), (0, 3, 4)))
    return out + bias[:, None, None]
