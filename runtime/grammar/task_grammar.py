"""The grammar of a task's answers."""

from __future__ import annotations

from typing import Literal, TypeAlias

from paligemma_edge.runtime.errors import OptionError
from paligemma_edge.runtime.grammar.objects import ObjectGrammar
from paligemma_edge.runtime.text.tasks import Task

Labels: TypeAlias = Literal["any", "asked"]


def task_grammar(task: Task, labels: Labels = "any") -> ObjectGrammar | None:
    """The grammar of a task, None for words.

    Args:
        task: what the prompt requests.
        labels: "any" leaves labels to the model; "asked" allows those alone that the prompt names,
            where it names any.

    Raises:
        OptionError: `labels` is neither.
    """
    if labels not in ("any", "asked"):
        raise OptionError(
            f'labels is {labels!r}, wanted "any" for the model\'s own labels, or "asked" for those '
            "of the prompt alone"
        )
    if task.labels is None:
        return None
    asked = task.classes if labels == "asked" else ()
    return ObjectGrammar(asked or None, task.masks)
