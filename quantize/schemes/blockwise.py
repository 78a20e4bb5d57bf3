"""Weights in blocks of 4 or 8 bits that share a scale: ONNX Runtime's MatMulNBits.

Symmetric and without zero points, the layout that CPU and CUDA kernels both read. On a CPU the
input of each product is rounded to 8 bits too, block by block and token by token, so that an
outlier spoils its own block of its own token alone.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from paligemma_edge.quantize.graphs.linear import Linear
from paligemma_edge.quantize.graphs.nodes import Nodes
from paligemma_edge.quantize.rounding.rounding import Rounded
from paligemma_edge.quantize.schemes.rewrite import Parts, Round, RoundedWeight, add_lazy, replace

_INT8_INPUTS = 4  # of MatMulNBits' accuracy_level


def to_blockwise(
    model: ir.Model, layer: Linear, round_rows: Round, *, bits: int, block: int
) -> None:
    """Replace a layer's product by MatMulNBits; a bias stays an `Add` of its own."""
    count, out = -(-layer.in_features // block), layer.out_features
    weight = RoundedWeight(layer, round_rows, lambda rounded: _parts(rounded, bits))
    codes = add_lazy(
        model,
        f"{layer.name}.codes",
        lambda: weight.take("codes"),
        ir.DataType.UINT8,
        [out, count, block * bits // 8],
    )
    scales = add_lazy(
        model,
        f"{layer.name}.scales",
        lambda: weight.take("scales"),
        ir.DataType.FLOAT,
        [out, count],
    )
    nodes = Nodes(model, layer.name)
    nodes.add(
        "MatMulNBits",
        *(layer.input, codes, scales),
        domain="com.microsoft",
        K=layer.in_features,
        N=out,
        bits=bits,
        block_size=block,
        accuracy_level=_INT8_INPUTS,
    )
    replace(layer, nodes)


def _parts(rounded: Rounded, bits: int) -> Parts:
    return {"codes": _pack(rounded, bits), "scales": rounded.scales}


def _pack(rounded: Rounded, bits: int) -> NDArray[np.uint8]:
    """Codes as [rows, blocks, bytes], offset to start at 0, two of 4 bits in a byte, low first."""
    rows, width = rounded.codes.shape
    missing = -width % rounded.block
    codes = np.pad(rounded.codes, ((0, 0), (0, missing))) if missing else rounded.codes
    unsigned = (codes.astype(np.int16) + (1 << (bits - 1))).astype(np.uint8)
    blocks = unsigned.reshape(rows, -1, rounded.block)
    if bits == 8:
        return blocks
    low, high = blocks[..., ::2], blocks[..., 1::2]
    return low | np.left_shift(high, np.uint8(4))
