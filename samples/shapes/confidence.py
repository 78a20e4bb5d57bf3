"""Measures on held-out images what the confidence of a detection is worth.

    python -m samples.shapes.confidence shapes.bundle
    python -m samples.shapes.confidence shapes.bundle --variant cpu-int8 --plot reliability.png

Each candidate is a number that could be the confidence, made of what `Generation.object_log_probs`
tells. A label that was asked for scores as much as the surest of its objects, and 0 without one.
"""

from __future__ import annotations

import argparse
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from paligemma_edge.quantize.fidelity.matplotlib_folder import without_traces
from paligemma_edge.runtime.loading.loaded_model import load_model
from paligemma_edge.runtime.results.confidence import ObjectLogProbs, mean, object_log_prob
from samples.shapes.asked_labels import OVERLAP, AskedLabel, ask
from samples.shapes.scoring import box_iou

BINS = 10


# The log-probability of a label among those asked → the logarithm of a confidence.
Candidate: TypeAlias = Callable[[ObjectLogProbs, float], float]


def _begins(parts: ObjectLogProbs) -> float:
    return sum(parts.separator) + parts.box


def _places(parts: ObjectLogProbs) -> float:
    return mean(parts.corners)


CANDIDATES: Mapping[str, Candidate] = {
    "mean of all tokens": lambda p, _: mean((*p.corners, *p.codes, *p.label)),
    "mean of corners": lambda p, _: _places(p),
    "mean of label": lambda p, _: mean(p.label) if p.label else 0.0,
    "box": lambda p, _: p.box,
    "begins": lambda p, _: _begins(p),
    "label": lambda p, _: sum(p.label),
    "box x label": lambda p, _: p.box + sum(p.label),
    "begins x label": lambda p, _: _begins(p) + sum(p.label),
    "begins x label among asked": lambda p, asked: _begins(p) + asked,
    "least of begins, label": lambda p, _: min(_begins(p), sum(p.label)),
    "mean of begins, label": lambda p, _: (_begins(p) + sum(p.label)) / 2,
    "begins x label x corners": lambda p, _: _begins(p) + sum(p.label) + _places(p),
    "as it is": lambda p, _: object_log_prob(p),
}


@dataclass(frozen=True)
class Figures:
    """What a candidate is worth; values at 5, 50 and 95 %."""

    auc: float  # how often a label that is there scores above one that is not; ties half
    auc_forced: float  # the same, where an answer without an object is held to name one
    calibration_error: float  # mean distance of confidence from the share that is right
    difference: tuple[float, float]  # between detect and segment for an object: median and 95 %
    present: tuple[float, float, float]
    absent: tuple[float, float, float]


def measure(asked: Sequence[AskedLabel], candidate: Candidate) -> Figures:
    """The figures of one candidate."""
    there, absent = (
        [one for one in asked if one.present is is_there] for is_there in (True, False)
    )
    values = [[_score(one, candidate, forced=False) for one in part] for part in (there, absent)]
    forced = [[_score(one, candidate, forced=True) for one in part] for part in (there, absent)]
    confidences, right = reliability(asked, candidate)
    return Figures(
        auc=rank(*values),
        auc_forced=rank(*forced),
        calibration_error=calibration_error(confidences, right),
        difference=_differences(asked, candidate),
        present=_spread(values[0]),
        absent=_spread(values[1]),
    )


def rank(above: Sequence[float], below: Sequence[float]) -> float:
    """How often a value of the first is larger than one of the second; ties count half."""
    if not above or not below:
        return math.nan
    one, two = np.asarray(above)[:, None], np.asarray(below)
    return float(np.mean((one > two) + 0.5 * (one == two)))


def reliability(
    asked: Sequence[AskedLabel], candidate: Candidate
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Confidence of every object, and whether it is right."""
    objects = [found for one in asked for found in one.objects]
    values = [math.exp(candidate(found.parts, found.asked_log_prob)) for found in objects]
    return np.array(values), np.array([found.right for found in objects], np.bool_)


def calibration_error(confidences: NDArray[np.float64], right: NDArray[np.bool_]) -> float:
    """Expected calibration error in BINS bins of equal width."""
    error = 0.0
    for inside in _binned(confidences):
        if inside.any():
            error += inside.mean() * abs(confidences[inside].mean() - right[inside].mean())
    return float(error)


def _binned(confidences: NDArray[np.float64]) -> Iterator[NDArray[np.bool_]]:
    places = np.minimum((confidences * BINS).astype(int), BINS - 1)
    return (places == place for place in range(BINS))


def _score(one: AskedLabel, candidate: Candidate, *, forced: bool) -> float:
    values = [candidate(found.parts, found.asked_log_prob) for found in one.objects]
    if not values and forced and one.forced is not None:
        return math.exp(candidate(one.forced, 0.0))
    return max(map(math.exp, values), default=0.0)


def _differences(asked: Sequence[AskedLabel], candidate: Candidate) -> tuple[float, float]:
    """Of objects that both tasks put in the same place with the same label."""
    segmented = {(o.question, o.label): o.objects for o in asked if o.task == "segment"}
    differences = []
    for one in asked:
        for found in one.objects if one.task == "detect" else ():
            others = segmented[one.question, one.label]
            best = max(others, key=lambda o: box_iou(o.box, found.box), default=None)
            if best is not None and box_iou(best.box, found.box) >= OVERLAP:
                pair = (candidate(o.parts, o.asked_log_prob) for o in (found, best))
                one_value, other = map(math.exp, pair)
                differences.append(abs(one_value - other))
    if not differences:
        return math.nan, math.nan
    median, high = np.percentile(differences, [50, 95])
    return float(median), float(high)


def _spread(values: Sequence[float]) -> tuple[float, float, float]:
    if not values:
        return math.nan, math.nan, math.nan
    low, middle, high = np.percentile(values, [5, 50, 95])
    return float(low), float(middle), float(high)


def table(figures: Mapping[str, Figures]) -> str:
    """A row for each candidate."""
    rows = [
        f"{'candidate':28}{'AUC':>7}{'forced':>8}{'ECE':>7}"
        f"{'detect - segment':>19}{'there, 5 50 95 %':>21}{'absent, 5 50 95 %':>21}"
    ]
    for name, one in figures.items():
        difference, there, absent = (
            " ".join(f"{value:.2f}" for value in values)
            for values in (one.difference, one.present, one.absent)
        )
        rows.append(
            f"{name:28}{one.auc:7.3f}{one.auc_forced:8.3f}{one.calibration_error:7.3f}"
            f"{difference:>19}{there:>21}{absent:>21}"
        )
    return "\n".join(rows)


def plot(confidences: NDArray[np.float64], right: NDArray[np.bool_], title: str) -> bytes:
    """A PNG: of the objects of each confidence, how many are right, and how many there are."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 5.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    above.plot([0, 1], [0, 1], color="#5f6368", linewidth=1, linestyle="--")
    bins = [inside for inside in _binned(confidences) if inside.any()]
    above.plot(
        [confidences[inside].mean() for inside in bins],
        [right[inside].mean() for inside in bins],
        color="#0072B2",
        marker="o",
    )
    above.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="share that is right")
    above.set_title(title, loc="left", fontsize=10)
    below.hist(confidences, BINS, range=(0, 1), color="#0072B2", alpha=0.5)
    below.set(xlabel="confidence", ylabel="objects")
    for axis in (above, below):
        axis.spines[["top", "right"]].set_visible(False)
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def main() -> None:
    """Ask a bundle, print the table of all candidates, then one line of JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m samples.shapes.confidence", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--variant", help="default: the one that a bundle is opened with")
    parser.add_argument(
        "--count", type=int, default=200, help="held-out images; default: %(default)s"
    )
    parser.add_argument("--plot", type=Path, help="write the reliability of the confidence here")
    args = parser.parse_args()
    model = load_model(args.bundle, variant=args.variant)
    asked = list(ask(model.pipeline, args.count))
    figures = {name: measure(asked, candidate) for name, candidate in CANDIDATES.items()}
    there = sum(one.present for one in asked)
    objects = sum(len(one.objects) for one in asked)
    print(f"{there} labels that are there, {len(asked) - there} that are not, {objects} objects")
    print(table(figures))
    print(json.dumps({name: vars(one) for name, one in figures.items()}))
    if args.plot is not None:
        with without_traces():
            args.plot.write_bytes(plot(*reliability(asked, CANDIDATES["as it is"]), model.variant))


if __name__ == "__main__":
    main()
