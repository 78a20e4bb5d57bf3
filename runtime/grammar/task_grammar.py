"""The grammar of a task's answers."""

from __future__ import annotations

from paligemma_edge.runtime.grammar.objects import ObjectGrammar
from paligemma_edge.runtime.text.tasks import EVERYTHING, Task


def task_grammar(task: Task, *, any_label: bool = False) -> ObjectGrammar | None:
    """The grammar of a task, None for words; `any_label` allows labels that were not requested."""
    if task.labels is None:
        return None
    free = any_label or task.labels == EVERYTHING
    return ObjectGrammar(None if free else task.labels, task.masks)
