"""Which grammar a task's answers have."""

from __future__ import annotations

from paligemma_edge.runtime.grammar.objects import ObjectGrammar
from paligemma_edge.runtime.text.tasks import EVERYTHING, Task


def task_grammar(task: Task, *, any_label: bool = False) -> ObjectGrammar | None:
    """What an answer may be; `any_label` lets objects have labels that were not asked for."""
    if task.labels is None:
        return None
    free = any_label or task.labels == EVERYTHING
    return ObjectGrammar(None if free else task.labels, task.masks)
