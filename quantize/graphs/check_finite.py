"""Whether numbers are finite: decided by their bits, so that no kernel of any CPU can warn.

A checkpoint may hold NaN or Inf, and what arithmetic makes of them, a result, a warning or an
exception, depends on the CPU. So what is read is checked before anything is computed with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from paligemma_edge.runtime.errors import OptionError

# The bits of the exponent. All of them are set in NaN and Inf, and in no other value.
_EXPONENTS: Mapping[np.dtype[Any], np.unsignedinteger[Any]] = {
    np.dtype(np.float32): np.uint32(0x7F80_0000),
    np.dtype(np.float16): np.uint16(0x7C00),
    np.dtype(ml_dtypes.bfloat16): np.uint16(0x7F80),
}
_CHUNK = 1 << 18  # values that are checked at a time


def all_finite(values: NDArray[Any]) -> bool:
    """Whether no float32, float16 or bfloat16 value is NaN or Inf."""
    exponent = _EXPONENTS[values.dtype]
    bits = np.ravel(values.view(exponent.dtype), order="K")
    chunks = (bits[start : start + _CHUNK] for start in range(0, len(bits), _CHUNK))
    return all(bool(((chunk & exponent) != exponent).all()) for chunk in chunks)


def require_finite(name: str, values: NDArray[Any]) -> NDArray[Any]:
    """The values of a weight as they are stored; OptionError where they hold NaN or Inf."""
    if not all_finite(values):
        raise OptionError(
            f"the weights of {_layer(name)} hold NaN or Inf and cannot be rounded; download or "
            "save the checkpoint again"
        )
    return values


def compute_finite(name: str, compute: Callable[[], NDArray[np.float32]]) -> NDArray[np.float32]:
    """What is computed from finite weights; OptionError where it is beyond float32."""
    with np.errstate(over="ignore", invalid="ignore"):  # checked below
        values = compute()
    if not all_finite(values):
        raise OptionError(
            f"the weights of {_layer(name)} are beyond float32 once gains are folded and channels "
            "rotated or scaled; download or save the checkpoint again"
        )
    return values


def _layer(name: str) -> str:
    return name.removesuffix(".weight")
