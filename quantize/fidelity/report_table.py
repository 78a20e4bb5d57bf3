"""Several variants side by side, as a table for people.

Knows reports. Knows nothing of how they were measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from rich.markup import escape as escape_markup
from rich.table import Table

from paligemma_edge.runtime.bundle.fidelity import Fidelity, MemoryUse
from paligemma_edge.runtime.printable import short_line

_ABSENT = "–"


def render_reports(reports: Sequence[Fidelity]) -> Table:
    """A column for each report, their notes below; a measure that none has is left out."""
    notes = (_escape(f"{r.variant}: {note}") for r in reports for note in r.notes)
    table = Table(caption="\n".join(notes) or None, caption_justify="left")
    table.add_column("")
    for report in reports:
        table.add_column(_escape(report.variant), justify="right")
    for name, cells in _rows(reports):
        if set(cells) != {_ABSENT}:
            table.add_row(name, *cells)
    return table


def _rows(reports: Sequence[Fidelity]) -> Iterator[tuple[str, list[str]]]:
    for name, show in _MEASURES.items():
        yield name, [show(report) for report in reports]
    for task in dict.fromkeys(task for report in reports for task in report.tasks):
        yield f"{_escape(task)}, true answers", [_score(report, task) for report in reports]
    yield "worst layer", [_worst_layer(report) for report in reports]


def _score(report: Fidelity, task: str) -> str:
    """The variant's score, followed by the reference's."""
    if task not in report.tasks:
        return _ABSENT
    score = report.tasks[task]
    return f"{score.variant:.3f} ({score.reference:.3f})"


def _worst_layer(report: Fidelity) -> str:
    errors = [(e.relative_error, e) for e in report.layers if e.relative_error is not None]
    if not errors:
        return _ABSENT
    error, layer = max(errors, key=lambda pair: pair[0])
    place, scheme = f"{layer.graph} {layer.layer}", f"{layer.scheme}, {error:.2e}"
    return f"{_escape(place)}\n{_escape(scheme)}"


def _escape(text: str) -> str:
    """A text of a report, which may be a stranger's."""
    return escape_markup(short_line(text))


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


def _memory(memory: MemoryUse | None) -> str:
    return _ABSENT if memory is None else _megabytes(memory.peak_bytes)


def _anonymous(memory: MemoryUse | None) -> str:
    return _ABSENT if memory is None else _megabytes(memory.anonymous_bytes)


def _share(share: float | None) -> str:
    return _ABSENT if share is None else f"{share:.3f}"


_MEASURES: Mapping[str, Callable[[Fidelity], str]] = {
    "recipe": lambda r: _escape(r.recipe),
    "reference": lambda r: _escape(r.reference),
    "questions, tokens": lambda r: f"{r.questions}, {r.tokens}",
    "on disk": lambda r: _megabytes(r.disk_bytes),
    "peak of memory": lambda r: _memory(r.memory),
    "memory not of files": lambda r: _anonymous(r.memory),
    "tokens that agree": lambda r: f"{r.forced_agreement:.2%}",
    "tokens that agree, running free": lambda r: f"{r.free_agreement:.2%}",
    "identical answers": lambda r: f"{r.same_answers:.1%}",
    "mean KL divergence": lambda r: f"{r.divergence.mean:.2e}",
    "KL divergence, 99th percentile": lambda r: f"{r.divergence.p99:.2e}",
    "largest KL divergence": lambda r: f"{r.divergence.largest:.2e}",
    "mean logit error": lambda r: f"{r.logit_error.mean:.2e}",
    "largest logit error": lambda r: f"{r.logit_error.largest:.2e}",
    "IoU of boxes": lambda r: _share(r.box_iou),
    "IoU of masks": lambda r: _share(r.mask_iou),
}
