"""What transforms do to a layer's weight: linear changes of its inputs or outputs, as values.

A weight W [out, in] becomes `L @ W @ R`, factor by factor. What is added to it as a product
`B @ A` becomes `(L @ B) @ (A @ R)`: so an adapter that was trained on the original follows, long
after the weight was rounded. Knows matrices. Knows neither graphs nor recipes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

import numpy as np
import onnx_ir as ir

from paligemma_edge.quantize.graphs.derived_weights import DerivedMatrix, Float
from paligemma_edge.quantize.transforms.rotation import Rotation, rotate_columns

_Side: TypeAlias = Literal["inputs", "outputs"]


@dataclass(frozen=True, eq=False)
class ScaledInputs:
    """`W * scales`, where inputs are divided by them; a `shift` of the inputs became a bias."""

    side: ClassVar[_Side] = "inputs"
    whole: ClassVar[bool] = False

    scales: Float  # [in]
    shift: Float | None = None  # [in], was added to the inputs as they were before

    def __call__(self, rows: Float, start: int) -> Float:
        """Rows [rows, in], in place."""
        del start
        return np.multiply(rows, self.scales, out=rows)


@dataclass(frozen=True, eq=False)
class RotatedInputs:
    """`W @ R`, where inputs are rotated; block by block where they are wider than R."""

    side: ClassVar[_Side] = "inputs"
    whole: ClassVar[bool] = False

    rotation: Rotation

    def __call__(self, rows: Float, start: int) -> Float:
        """Rows [rows, in]."""
        del start
        return self.rotation.apply(rows)


@dataclass(frozen=True, eq=False)
class DividedOutputs:
    """Each row of W divided by a number."""

    side: ClassVar[_Side] = "outputs"
    whole: ClassVar[bool] = False

    divisors: Float  # [out]

    def __call__(self, rows: Float, start: int) -> Float:
        """Rows [rows, in] from number `start` on, in place."""
        return np.divide(rows, self.divisors[start : start + len(rows), None], out=rows)


@dataclass(frozen=True, eq=False)
class RotatedOutputs:
    """`R.T @ W`, where outputs are rotated; block by block, from row `first` on."""

    side: ClassVar[_Side] = "outputs"
    whole: ClassVar[bool] = True

    rotation: Rotation
    first: int = 0

    def __call__(self, rows: Float, start: int) -> Float:
        """All rows [out, in], in place."""
        assert start == 0, "a change that mixes rows is given all of them"
        for block in range(self.first, len(rows), self.rotation.size):
            part = slice(block, block + self.rotation.size)
            rows[part] = rotate_columns(self.rotation, rows[part])
        return rows


Change: TypeAlias = ScaledInputs | RotatedInputs | DividedOutputs | RotatedOutputs
Changes: TypeAlias = Mapping[str, Sequence[Change]]  # by layer, in the order that they were made


def changes_of(weight: ir.TensorProtocol) -> tuple[Change, ...]:
    """What was done to a weight, the first change first."""
    if not isinstance(weight, DerivedMatrix):
        return ()
    assert isinstance(weight.change, Change), "a layer is changed by what an adapter can follow"
    return (*changes_of(weight.source), weight.change)


@dataclass(frozen=True, eq=False)
class Branch:
    """What an adapter adds to a layer: `(x @ A.T + shift) @ B.T`."""

    a: Float  # [rank, in]
    b: Float  # [out, rank]
    shift: Float | None = None  # [rank]

    def after(self, changes: Sequence[Change]) -> Branch:
        """The branch of the layer as the changes left it."""
        a, b, shift = self.a.copy(), self.b.copy(), self.shift
        for change in changes:
            if isinstance(change, ScaledInputs) and change.shift is not None:
                moved = a @ change.shift
                shift = moved if shift is None else shift + moved
            if change.side == "inputs":
                a = change(a, 0)
            else:
                b = change(b, 0)
        return Branch(a, b, shift)


def has_shift(changes: Sequence[Change]) -> bool:
    """Whether a branch gets a shift by these changes."""
    return any(isinstance(c, ScaledInputs) and c.shift is not None for c in changes)
