"""How far a variant is from the original: errors of each stage, their tolerances, and JSON.

Knows stages and numbers. Knows neither the bundle nor the original.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

from paligemma_edge.runtime.bundle.golden import required_agreement
from paligemma_edge.runtime.manifest import Variant

ParityStage = Literal[
    "pixels",
    "token ids",
    "end ids",
    "vision",
    "projector",
    "first logits",
    "step logits",
    "answer",
]
STAGES: tuple[ParityStage, ...] = get_args(ParityStage)

# The largest relative error that a stage may have. Float weights are the checkpoint's own, so a
# float32 variant differs only by the order of its sums, the others by rounding. These
# bounds detect a broken graph; the quality of a small variant needs an evaluation.
_TOLERANCES: Mapping[str, float] = {
    "float32": 1e-4,
    "float16": 2e-2,
    "bfloat16": 1e-1,
}
_WEIGHT_TOLERANCES: Mapping[str, float] = {"int8": 2e-1, "int4": 5e-1}


@dataclass(frozen=True, kw_only=True)
class StageParity:
    """The largest error of one stage over all samples.

    Attributes:
        stage: The stage's name, one of `STAGES`.
        absolute: max |a - b|, b the original's tensor of one sample (of one step); for
            "token ids", "end ids" and "answer" the number of tokens that differ. Infinite where a
            shape differs or a value is NaN or infinite.
        relative: max |a - b| / max |b|; for tokens the share that differs. Infinite likewise.
        tolerance: The largest `relative` that passes.
        worst: The prompt with the largest relative error.
    """

    stage: ParityStage
    absolute: float
    relative: float
    tolerance: float
    worst: str

    @property
    def passed(self) -> bool:
        """Whether the relative error is within the tolerance."""
        return self.relative <= self.tolerance


@dataclass(frozen=True, kw_only=True)
class ParityReport:
    """How far one variant of a bundle is from the original.

    Attributes:
        variant: The variant's name.
        samples: The number of images with a prompt that were compared.
        steps: The decode steps that were compared, over all samples; prefills are not counted.
        versions: The versions of the packages that took part, by name.
        stages: The errors of each stage, in the order of `STAGES`.

    Example:
        >>> report = verify("mix.bundle", "paligemma-3b-mix-224")
        >>> report.passed
        True
        >>> {stage.stage: stage.relative for stage in report.stages}
    """

    variant: str
    samples: int
    steps: int
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
    if stage in ("pixels", "token ids", "end ids"):  # the same for every variant
        return _TOLERANCES["float32"] if stage == "pixels" else 0.0
    if stage == "answer":
        return 1 - required_agreement(variant)
    return max(_TOLERANCES[variant.compute_dtype], _WEIGHT_TOLERANCES.get(variant.weight_dtype, 0))
