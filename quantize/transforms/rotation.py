"""Orthogonal matrices that spread one channel's value over all: Hadamard's, where they exist.

A rotation of n channels is the Kronecker product of two small ones, so that it costs n times the
sum of their sides and not n times n.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from paligemma_edge.quantize.graphs.derived_weights import Float


@dataclass(frozen=True)
class Rotation:
    """`x @ kron(left, right)`, with `left` [a, a] and `right` [b, b], both orthogonal."""

    left: Float
    right: Float

    @classmethod
    def of_size(cls, size: int) -> Rotation:
        """The rotation of `size` channels; the same one every time.

        Signs keep the common part of all channels from being gathered in a single one.
        """
        twos = (size & -size).bit_length() - 1
        odd = size >> twos
        right_twos = min(twos, round(math.log2(size) / 2))
        rng = np.random.default_rng(size)
        left = np.kron(_cosines(odd), _hadamard(twos - right_twos))
        return cls(_with_signs(left, rng), _with_signs(_hadamard(right_twos), rng))

    @property
    def size(self) -> int:
        """Number of channels."""
        return len(self.left) * len(self.right)

    def apply(self, x: Float) -> Float:
        """Rotate rows [rows, size]."""
        cube = x.reshape(-1, len(self.left), len(self.right)) @ self.right
        rotated: Float = self.left.T @ cube
        return rotated.reshape(x.shape)


def rotate_columns(rotation: Rotation, matrix: Float) -> Float:
    """`R.T @ matrix`: what writes [size, in] into the stream, rotated."""
    return np.ascontiguousarray(rotation.apply(np.ascontiguousarray(matrix.T)).T)


def _hadamard(twos: int) -> Float:
    matrix = np.ones((1, 1), np.float32)
    for _ in range(twos):
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return (matrix / math.sqrt(len(matrix))).astype(np.float32)


def _cosines(size: int) -> Float:
    """The orthonormal DCT: of an odd size there is no Hadamard matrix."""
    k, n = np.mgrid[0:size, 0:size]
    matrix = np.cos(np.pi * (2 * n + 1) * k / (2 * size)) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return np.asarray(matrix, np.float32)


def _with_signs(matrix: Float, rng: np.random.Generator) -> Float:
    signs = rng.choice(np.array([-1, 1], np.float32), len(matrix))
    return (signs[:, None] * matrix).astype(np.float32)
