"""How far a variant is from the original: the figures, their limits, JSON and a table.

Knows stages and numbers. Knows neither the bundle nor the original.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

from rich.markup import escape
from rich.table import Table

from paligemma_edge.runtime.bundle.golden import required_agreement
from paligemma_edge.runtime.manifest import Variant

ParityStage = Literal[
    "pixels", "token ids", "vision", "projector", "first logits", "step logits", "answer"
]
STAGES: tuple[ParityStage, ...] = get_args(ParityStage)

# The largest relative error that a stage may have. Float weights are the checkpoint's own, so a
# float32 variant differs by the order of its sums alone; the others by what they round to. These
# bounds find a broken graph; how good a small variant is, an evaluation says.
_TOLERANCES: Mapping[str, float] = {
    "float32": 1e-4,
    "float16": 2e-2,
    "bfloat16": 1e-1,
}
_WEIGHT_TOLERANCES: Mapping[str, float] = {"int8": 2e-1, "int4": 5e-1}


@dataclass(frozen=True, kw_only=True)
class StageParity:
    """The largest error of one stage over all samples.

    `absolute` is max |a - b| and `relative` max |a - b| / max |b|, b the original's tensor of
    one sample (of one step). Of "token ids" and "answer" they are the number and the share of
    tokens that differ. Infinite where a shape differs or a value is no number.
    """

    stage: ParityStage
    absolute: float
    relative: float
    tolerance: float  # of `relative`
    worst: str  # the prompt with the largest relative error

    @property
    def passed(self) -> bool:
        """Whether the relative error is within the tolerance."""
        return self.relative <= self.tolerance


@dataclass(frozen=True, kw_only=True)
class ParityReport:
    """How far one variant of a bundle is from the original."""

    variant: str
    samples: int
    steps: int  # compared after the first token, over all samples
    versions: Mapping[str, str]
    stages: tuple[StageParity, ...]

    @property
    def passed(self) -> bool:
        """Whether every stage is within its tolerance."""
        return all(stage.passed for stage in self.stages)

    def to_json(self) -> str:
        """JSON text; an infinite error is null."""
        data = {"passed": self.passed, **dataclasses.asdict(self)}
        for stage, passed in zip(data["stages"], self.stages, strict=True):
            stage["passed"] = passed.passed
            for name in ("absolute", "relative"):
                stage[name] = stage[name] if math.isfinite(stage[name]) else None
        return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read what `to_json` wrote."""
        data: dict[str, Any] = json.loads(text)
        del data["passed"]
        stages = data.pop("stages")
        for stage in stages:
            del stage["passed"]
            for name in ("absolute", "relative"):
                stage[name] = math.inf if stage[name] is None else stage[name]
        return cls(stages=tuple(StageParity(**stage) for stage in stages), **data)


def tolerance(stage: ParityStage, variant: Variant) -> float:
    """The largest relative error that a stage of a variant may have."""
    if stage in ("pixels", "token ids"):  # computed alike for every variant
        return _TOLERANCES["float32"] if stage == "pixels" else 0.0
    if stage == "answer":
        return 1 - required_agreement(variant)
    return max(_TOLERANCES[variant.compute_dtype], _WEIGHT_TOLERANCES.get(variant.weight_dtype, 0))


def render(report: ParityReport) -> Table:
    """The report as a table for people."""
    verdict = "equals the original" if report.passed else "DIFFERS from the original"
    versions = ", ".join(f"{name} {number}" for name, number in report.versions.items())
    table = Table(
        title=f"{report.variant} {verdict}: {report.samples} samples, {report.steps} steps",
        caption=versions,
    )
    for name in ("stage", "largest error", "relative", "tolerance", ""):
        table.add_column(name, justify="left" if name in ("stage", "") else "right")
    for stage in report.stages:
        numbers = (f"{stage.absolute:.3g}", f"{stage.relative:.2e}", f"{stage.tolerance:.0e}")
        result = "[green]ok[/]" if stage.passed else f"[red]differs[/]: {escape(stage.worst)}"
        table.add_row(stage.stage, *numbers, result)
    return table
