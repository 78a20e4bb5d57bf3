"""A parity report as a table for the terminal."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from paligemma_edge.export.verify.parity import ParityReport
from paligemma_edge.runtime.printable import short_line


def parity_table(report: ParityReport) -> Table:
    """One row for each stage, and the verdict as the title."""
    verdict = "equals the original" if report.passed else "DIFFERS from the original"
    versions = ", ".join(f"{name} {number}" for name, number in report.versions.items())
    compared = f"{report.samples} samples, {report.steps} steps"
    variant = escape(short_line(report.variant))
    table = Table(title=f"{variant} {verdict}: {compared}", caption=versions)
    for name in ("stage", "largest error", "relative", "tolerance", ""):
        table.add_column(name, justify="left" if name in ("stage", "") else "right")
    for stage in report.stages:
        numbers = (f"{stage.absolute:.3g}", f"{stage.relative:.2e}", f"{stage.tolerance:.0e}")
        result = (
            "[green]ok[/]"
            if stage.passed
            else f"[red]differs[/]: {escape(short_line(stage.worst))}"
        )
        table.add_row(stage.stage, *numbers, result)
    return table
