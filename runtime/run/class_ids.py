"""The ids of labels over a whole run: those asked for first, then others as they first appear.

A result alone counts the labels that its own prompt asks for; in a run a label has the same id
whichever prompt and image it belongs to. COCO's categories are these ids and one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from paligemma_edge.runtime.errors import PromptError
from paligemma_edge.runtime.run.journal import Record
from paligemma_edge.runtime.text.tasks import Task


class ClassIds:
    """Numbers the labels of records, which it is given in their order."""

    def __init__(self, prompts: Iterable[str]) -> None:
        """Count the labels that these prompts ask for, in their order."""
        asked = (label for prompt in dict.fromkeys(prompts) for label in _asked(prompt))
        self._asked = tuple(dict.fromkeys(asked))
        self._ids = {label: place for place, label in enumerate(self._asked)}

    def number(self, record: Record) -> Record:
        """The record with the run's ids and the labels that they count; words are as they were."""
        if "objects" not in record:
            return record
        objects = [self._numbered(detection) for detection in record["objects"]]
        return {**record, "classes": list(self._asked), "objects": objects}

    def _numbered(self, detection: dict[str, Any]) -> dict[str, Any]:
        class_id = self._ids.setdefault(detection["label"], len(self._ids))
        return {**detection, "class_id": class_id}


def _asked(prompt: str) -> Iterator[str]:
    try:
        yield from Task.of(prompt).classes
    except PromptError:  # of one question, which is answered with this error
        return
