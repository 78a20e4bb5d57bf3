"""A variant's error, layer by layer, as an image; and the files that a report is in a bundle.

Knows the report alone. matplotlib is imported where it draws.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from paligemma_edge.quantize.fidelity.matplotlib_folder import without_traces
from paligemma_edge.runtime.bundle.fidelity import Fidelity, LayerError, plot_name, report_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

# Okabe and Ito's colours, which the colour-blind can distinguish; each with a mark of its own.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKS = ("o", "s", "D", "^", "v", "P", "X")
_GREY = "#5f6368"
_WIDTH, _ROW, _HEAD, _GAP = 9.0, 0.165, 1.75, 0.5  # inches
_DPI = 110


def report_files(report: Fidelity) -> Mapping[str, bytes]:
    """What goes into the bundle: the report, and its plot if it has errors by layer."""
    files = {report_name(report.variant): report.to_json().encode()}
    if report.layers:
        files[plot_name(report.variant)] = plot_layers(report)
    return files


def plot_layers(report: Fidelity) -> bytes:
    """A PNG with a row for each layer, in the order of the report, one panel for each graph.

    Errors are on a log axis. An error of zero is a hollow mark on the left edge, one that is NaN
    or Inf a hollow mark on the right.
    """
    assert report.layers, "a report without layers has nothing to plot"
    with without_traces():
        return _plot(report)


def _plot(report: Fidelity) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = _by_graph(report.layers)
    rows = sum(map(len, panels.values()))
    height = _HEAD + _ROW * rows + _GAP * len(panels)
    figure = Figure(figsize=(_WIDTH, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    _fill(figure, report, panels)
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _fill(figure: Figure, report: Fidelity, panels: Mapping[str, Sequence[LayerError]]) -> None:
    styles = _styles(report.layers)
    limits = _limits(report.layers)
    axes = figure.subplots(
        len(panels),
        1,
        sharex=True,
        squeeze=False,
        height_ratios=[len(layers) + 1.2 for layers in panels.values()],
    )[:, 0]
    for axis, (graph, layers) in zip(axes, panels.items(), strict=True):
        _draw_panel(axis, graph, layers, styles, limits)
    axes[-1].set_xlabel("relative error of the layer's output")
    axes[0].tick_params(axis="x", labeltop=True)
    figure.legend(
        handles=_legend(styles),
        loc="outside upper center",
        ncols=min(4, len(styles)),
        frameon=False,
        title=f"{report.variant}: error by layer, beside {report.reference}\n",
        title_fontproperties={"size": 13, "weight": "bold"},
    )


def _draw_panel(
    axis: Axes,
    graph: str,
    layers: Sequence[LayerError],
    styles: Mapping[str, tuple[str, str]],
    limits: tuple[float, float],
) -> None:
    low, high = limits
    axis.set_xscale("log")
    axis.set_xlim(low, high)
    axis.set_ylim(len(layers) - 0.4, -0.6)
    axis.set_yticks(range(len(layers)), [layer.layer for layer in layers], fontsize=7)
    axis.set_title(graph.replace("_", " "), loc="left", fontsize=10, color=_GREY)
    axis.grid(axis="x", which="major", color="#dadce0", linewidth=0.7)
    axis.set_axisbelow(True)
    axis.tick_params(axis="x", which="minor", labelbottom=False)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(axis="y", length=0, pad=7)
    for place, layer in enumerate(layers):
        colour, mark = styles[layer.scheme]
        value = _placed(layer.relative_error, limits)
        axis.hlines(place, low, value, color=colour, linewidth=1, alpha=0.35)
        face = colour if layer.relative_error and math.isfinite(layer.relative_error) else "white"
        axis.plot(
            value, place, mark, color=colour, markerfacecolor=face, markersize=5, clip_on=False
        )


def _legend(styles: Mapping[str, tuple[str, str]]) -> list[Line2D]:
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], color=colour, marker=mark, linestyle="", label=scheme)
        for scheme, (colour, mark) in styles.items()
    ]


def _by_graph(layers: Sequence[LayerError]) -> dict[str, list[LayerError]]:
    panels: dict[str, list[LayerError]] = {}
    for layer in layers:
        panels.setdefault(layer.graph, []).append(layer)
    return panels


def _styles(layers: Sequence[LayerError]) -> dict[str, tuple[str, str]]:
    """Colour and mark of each scheme, in the order in which the schemes appear."""
    schemes = dict.fromkeys(layer.scheme for layer in layers)
    return {
        scheme: (_COLOURS[place % len(_COLOURS)], _MARKS[place % len(_MARKS)])
        for place, scheme in enumerate(schemes)
    }


def _limits(layers: Sequence[LayerError]) -> tuple[float, float]:
    """Powers of ten around the errors, so that several reports are easily compared."""
    errors = [e for layer in layers if (e := layer.relative_error) and math.isfinite(e)]
    low, high = min(errors, default=1e-3), max(errors, default=1.0)
    return 10.0 ** math.floor(math.log10(low) - 0.02), 10.0 ** math.ceil(math.log10(high) + 0.02)


def _placed(error: float | None, limits: tuple[float, float]) -> float:
    if error is None or not math.isfinite(error):
        return limits[1]
    return error or limits[0]
