"""How close a variant is to the lossless one: the figures, their JSON and a short summary.

Knows the figures and the name of the report in a bundle. Knows nothing of how they are measured.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from paligemma_edge.runtime.bundle.bundle import Bundle
from paligemma_edge.runtime.errors import BundleError
from paligemma_edge.runtime.schema import MismatchError, parse_json

MAX_REPORT_BYTES = 16 << 20


def report_name(variant: str) -> str:
    """Name of the file with a variant's report."""
    return f"fidelity/{variant}.json"


def plot_name(variant: str) -> str:
    """Name of the plot of a variant's error, layer by layer."""
    return f"fidelity/{variant}.png"


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A figure over all compared tokens, never negative."""

    mean: float
    p99: float  # 99th percentile
    largest: float

    def __post_init__(self) -> None:
        for name in ("mean", "p99", "largest"):
            _check_range(name, getattr(self, name), 0, math.inf)


@dataclass(frozen=True, kw_only=True)
class TaskScore:
    """Mean score of both variants against the truth, each 0..1."""

    questions: int
    reference: float
    variant: float

    def __post_init__(self) -> None:
        _check_range("questions", self.questions, 1, math.inf)
        _check_range("reference", self.reference, 0, 1)
        _check_range("variant", self.variant, 0, 1)


@dataclass(frozen=True, kw_only=True)
class LayerError:
    """Error of one layer's output, relative to the norm of the lossless layer's output."""

    graph: str
    layer: str
    scheme: str
    relative_error: float | None  # None where it is NaN or infinite

    def __post_init__(self) -> None:
        if self.relative_error is not None and math.isfinite(self.relative_error):
            _check_range("relative_error", self.relative_error, 0, math.inf)


@dataclass(frozen=True, kw_only=True)
class MemoryUse:
    """Resident memory of a process in bytes: at its peak, and without pages of files."""

    peak_bytes: int
    anonymous_bytes: int  # what the system cannot take back and read again from disk


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """One variant compared with the lossless one of the same bundle, over the same questions.

    Tokens are those of the reference's greedy answers. Forced means that each token is predicted
    after the reference's own tokens, free that it is predicted after the variant's own.
    """

    variant: str
    reference: str
    recipe: str
    questions: int
    tokens: int
    forced_agreement: float  # share of tokens
    free_agreement: float  # share of positions with the same token, up to the longer answer
    same_answers: float  # share of questions whose whole free answer is the reference's
    divergence: Spread  # KL(reference || variant) of the next token, in nats
    logit_error: Spread  # max |a - b| / max |b| of a row of logits, b the reference's
    box_iou: float | None  # mean over questions whose reference answer has boxes
    mask_iou: float | None  # mean over questions whose reference answer has masks
    tasks: Mapping[str, TaskScore]  # of the questions whose true answer is known
    disk_bytes: int
    memory: MemoryUse | None  # None where it was not measured
    layers: tuple[LayerError, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("questions", "tokens", "disk_bytes"):
            _check_range(name, getattr(self, name), 0 if name == "disk_bytes" else 1, math.inf)
        for name in ("forced_agreement", "free_agreement", "same_answers", "box_iou", "mask_iou"):
            share = getattr(self, name)
            if share is not None:
                _check_range(name, share, 0, 1)

    def to_json(self) -> str:
        """JSON text in the order of the fields; NaN and infinity become null."""
        data = _without_infinities(dataclasses.asdict(self))
        return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Parse and check every field; BundleError in one line where one is wrong."""
        try:
            return parse_json(cls, text)
        except MismatchError as error:
            raise BundleError(f"not a fidelity report: {error}; {_TODO}") from None

    @classmethod
    def find(cls, bundle: Bundle, variant: str) -> Self | None:
        """A variant's report, None where the bundle has none; BundleError where it is damaged."""
        name = report_name(variant)
        if name not in bundle.manifest.files:
            return None
        if bundle.manifest.files[name].bytes > MAX_REPORT_BYTES:
            raise BundleError(f"bundle {bundle.path}: {name} is too large for a report; {_TODO}")
        bundle.verify([name])
        try:
            return cls.from_json(bundle.file(name).read_bytes())
        except BundleError as error:
            raise BundleError(f"bundle {bundle.path}: {name}: {error}") from None

    def summary(self) -> list[str]:
        """The report in at most five lines of text."""
        lines = [
            f"compared with {self.reference}, {self.questions} questions: "
            f"{self.forced_agreement:.1%} of {self.tokens} tokens agree, "
            f"{self.same_answers:.1%} of answers are identical",
            f"KL divergence {self.divergence.mean:.2g} nats a token, "
            f"99th percentile {self.divergence.p99:.2g}, largest {self.divergence.largest:.2g}",
        ]
        overlaps = {"boxes": self.box_iou, "masks": self.mask_iou}
        ious = [f"{name} {share:.3f}" for name, share in overlaps.items() if share is not None]
        if ious:
            lines.append(f"IoU with the answers of {self.reference}: {', '.join(ious)}")
        if self.tasks:
            scores = (f"{t} {s.variant:.3f} ({s.reference:.3f})" for t, s in self.tasks.items())
            lines.append(f"score against the truth ({self.reference}): {', '.join(scores)}")
        if self.memory is not None:
            peak, anonymous = self.memory.peak_bytes / 1e6, self.memory.anonymous_bytes / 1e6
            lines.append(f"{peak:,.0f} MB of memory at its peak, {anonymous:,.0f} MB not of files")
        return lines


_TODO = "run `paligemma-edge quantize` again"


def _check_range(name: str, value: float, low: float, high: float) -> None:
    # Written so that NaN fails too.
    if not low <= value <= high:
        raise MismatchError(f"{name} is {value}, wanted {low} to {high}")


def _without_infinities(value: object) -> object:
    if isinstance(value, dict):
        return {name: _without_infinities(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_infinities(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
