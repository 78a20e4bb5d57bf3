"""Draw the house: `make house` writes docs/house.png, docs/house.json and a table of rooms."""

from __future__ import annotations

import io
import itertools
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, PathPatch
from matplotlib.path import Path as Curve
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.house.house import (
    DIAGRAM,
    PAGE,
    TABLE,
    House,
    arrows,
    as_json,
    digest,
    folder,
    is_ground,
    read_house,
    with_table,
)
from tests.house.layout import Layout, lay_out

BOX_WIDTH, BOX_HEIGHT, ROW = 2.85, 1.2, 1.68  # inches
GROUND_HEIGHT, MARGIN, HEADER, BETWEEN = 0.78, 0.35, 0.72, 0.7
SPREAD = 1.3  # at most, where a folder has room to the sides
LINE = 30  # characters of a sentence
INK = "#1f2937"
COLOURS = {"export": "#b4540a", "quantize": "#6d28d9", "runtime": "#0f6b8a"}
TINTS = {"export": "#fdf3e7", "quantize": "#f5f0fe", "runtime": "#eaf6fa"}
TITLES = {
    "export": "from a checkpoint to a bundle; on a workstation",
    "quantize": "smaller variants; needs no PyTorch",
    "runtime": "answers; on the device",
}


@dataclass(frozen=True)
class Panel:
    """The rectangle of one folder, in inches from the lower left corner."""

    name: str
    layout: Layout
    x: float
    y: float
    width: float
    height: float
    row: float  # between the rows
    foot: float  # height that the ground takes
    spread: float  # of the places to the sides

    def place(self, name: str, row: int) -> tuple[float, float]:
        """The middle of a box, or of the gap that an arrow takes."""
        x = self.x + self.width / 2 + self.layout.places[name] * BOX_WIDTH * self.spread
        return x, self.y + MARGIN + self.foot + BOX_HEIGHT / 2 + row * self.row


def main() -> None:
    """Write the diagram, its source table, and the table of rooms in the page."""
    house = read_house()
    TABLE.write_text(as_json(house), encoding="utf-8")
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), house), encoding="utf-8")
    save(draw(house), digest(house))


def save(figure: Figure, source: str) -> None:
    """Write a PNG of few colours, which is a fifth as large, with the digest of its table."""
    buffer, note = io.BytesIO(), PngInfo()
    figure.savefig(buffer, dpi=96)
    note.add_text("Source", source)
    image = Image.open(buffer).convert("RGB").quantize(96, dither=Image.Dither.NONE)
    image.save(DIAGRAM, pnginfo=note, optimize=True)


def draw(house: House) -> Figure:
    """The three folders: export beside quantize, the runtime under both."""
    panels = lay_out_panels(house)
    width = max(panel.x + panel.width for panel in panels) + MARGIN
    height = max(panel.y + panel.height for panel in panels) + MARGIN
    figure = Figure(figsize=(width, height), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    for panel in panels:
        draw_panel(axes, panel, house)
    draw_folder_arrows(axes, panels)
    return figure


def lay_out_panels(house: House) -> Sequence[Panel]:
    layouts = {
        name: lay_out(
            [room for room in house if folder(room) == name and not is_ground(room)],
            arrows(house, name),
        )
        for name in COLOURS
    }
    widths = {name: layout.width * BOX_WIDTH + 2 * MARGIN for name, layout in layouts.items()}
    whole = max(widths["export"] + BETWEEN + widths["quantize"], widths["runtime"])
    spare = whole - widths["export"] - BETWEEN - widths["quantize"]
    foot = GROUND_HEIGHT + ROW - BOX_HEIGHT
    lower = _height(layouts["runtime"]) + foot
    upper = max(_height(layouts[name]) for name in ("export", "quantize"))
    top = MARGIN + lower + BETWEEN
    left = widths["export"] + spare / 2
    right = widths["quantize"] + spare / 2
    return (
        _panel("runtime", layouts, MARGIN, MARGIN, whole, lower, foot),
        _panel("export", layouts, MARGIN, top, left, upper),
        _panel("quantize", layouts, MARGIN + left + BETWEEN, top, right, upper),
    )


def _height(layout: Layout) -> float:
    return max(layout.rows.values()) * ROW + BOX_HEIGHT + 2 * MARGIN + HEADER


def _panel(
    name: str,
    layouts: dict[str, Layout],
    x: float,
    y: float,
    width: float,
    height: float,
    foot: float = 0,
) -> Panel:
    steps = max(layouts[name].rows.values())
    row = (height - foot - BOX_HEIGHT - 2 * MARGIN - HEADER) / steps
    spread = min(SPREAD, (width - 2 * MARGIN) / (layouts[name].width * BOX_WIDTH))
    return Panel(name, layouts[name], x, y, width, height, row, foot, spread)


def draw_panel(axes: Axes, panel: Panel, house: House) -> None:
    colour = COLOURS[panel.name]
    _box(axes, panel.x, panel.y, panel.width, panel.height, TINTS[panel.name], "none", 0)
    top = panel.y + panel.height - MARGIN
    axes.text(
        panel.x + MARGIN, top, f"{panel.name}/", size=25, weight="bold", color=colour, va="top"
    )
    axes.text(
        panel.x + panel.width - MARGIN,
        top - 0.06,
        TITLES[panel.name],
        size=14.5,
        color=INK,
        va="top",
        ha="right",
        style="italic",
    )
    for way in panel.layout.ways:
        draw_arrow(axes, panel, way)
    for room, row in panel.layout.rows.items():
        x, y = panel.place(room, row)
        draw_room(axes, panel.name, room, house[room].about, x, y, BOX_WIDTH, BOX_HEIGHT)
    if panel.foot:
        room, x = f"{panel.name}.ground", panel.x + panel.width / 2
        y = panel.y + MARGIN + GROUND_HEIGHT / 2
        wide = panel.width - 2 * MARGIN
        draw_room(axes, panel.name, room, house[room].about, x, y, wide, GROUND_HEIGHT)


def draw_room(
    axes: Axes, name: str, room: str, about: str, x: float, y: float, width: float, height: float
) -> None:
    left, bottom = x - width / 2, y - height / 2
    _box(axes, left, bottom, width, height, "white", COLOURS[name], 1.6, zorder=3)
    axes.text(
        x,
        y + height / 2 - 0.09,
        room.partition(".")[2],
        size=15.5,
        weight="bold",
        ha="center",
        va="top",
        color=COLOURS[name],
        zorder=4,
    )
    lines = textwrap.wrap(about, int(LINE * width / BOX_WIDTH))
    axes.text(
        x,
        y + height / 2 - 0.40,
        "\n".join(lines),
        size=11.2,
        ha="center",
        va="top",
        color=INK,
        zorder=4,
        linespacing=1.15,
    )


def draw_arrow(axes: Axes, panel: Panel, way: Sequence[str]) -> None:
    """A smooth line down from one box to another, upright where it passes a row."""
    row = panel.layout.rows[way[0]]
    points = [panel.place(name, row - step) for step, name in enumerate(way)]
    (x, y), half = points[0], BOX_HEIGHT / 2
    curve, codes = [(x, y - half)], [Curve.MOVETO]
    for (_, upper), (x, y) in itertools.pairwise(points):
        start, end = curve[-1], (x, y + half)
        bend = (upper - y - 2 * half) * 0.55
        curve += [(start[0], start[1] - bend), (end[0], end[1] + bend), end]
        codes += [Curve.CURVE4] * 3
        if (x, y) != points[-1]:
            curve.append((x, y - half))
            codes.append(Curve.LINETO)
    line = Curve(curve, codes)
    colour = COLOURS[panel.name]
    axes.add_patch(PathPatch(line, facecolor="none", edgecolor=colour, lw=1.3, alpha=0.75))
    axes.add_patch(
        FancyArrowPatch(
            (x, y + half + 0.05),
            (x, y + half),
            arrowstyle="-|>",
            mutation_scale=17,
            color=colour,
            lw=0,
            shrinkA=0,
            shrinkB=0,
            zorder=2,
        )
    )


def draw_folder_arrows(axes: Axes, panels: Sequence[Panel]) -> None:
    """Export imports quantize, and both import the runtime."""
    runtime, export, quantize = panels
    middle = export.y + export.height / 2
    edge = runtime.y + runtime.height
    ends = [((export.x + export.width, middle), (quantize.x, middle))]
    for panel in (export, quantize):
        x = panel.x + panel.width / 2
        ends.append(((x, panel.y), (x, edge)))
    for start, end in ends:
        axes.add_patch(
            FancyArrowPatch(
                start,
                end,
                arrowstyle="simple,head_length=14,head_width=30,tail_width=13",
                color="#9aa5b1",
                lw=0,
                shrinkA=3,
                shrinkB=3,
            )
        )


def _box(
    axes: Axes,
    x: float,
    y: float,
    width: float,
    height: float,
    face: str,
    edge: str,
    line: float,
    zorder: float = 0,
) -> None:
    style = "round,pad=0,rounding_size=0.12"
    axes.add_patch(
        FancyBboxPatch(
            (x, y), width, height, style, facecolor=face, edgecolor=edge, lw=line, zorder=zorder
        )
    )


if __name__ == "__main__":
    main()
