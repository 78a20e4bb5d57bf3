"""What a user should know of a run before it begins: of its prompts, and of its folders."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator, Mapping

from paligemma_edge.runtime.printable import short_line
from paligemma_edge.runtime.text.tasks import Task

_TASKS = ("answer", "caption", "describe", "detect", "ocr", "question", "segment")
_NEAR = 0.75  # of 1: one letter is missing, added, changed or swapped
_KINDS = 8  # of files that are named


def prompt_hints(prompts: Iterable[str]) -> Iterator[str]:
    """A line for each prompt whose labels are parted by commas: the model knows semicolons."""
    for prompt in prompts:
        labels = Task.of(prompt).labels
        if labels is not None and len(labels) == 1 and "," in labels[0]:
            verb = prompt.split(maxsplit=1)[0]
            parts = [part.strip() for part in labels[0].split(",") if part.strip()]
            if len(parts) > 1:
                yield (
                    f"{prompt!r} asks for one thing of that name; for {len(parts)} things write "
                    f"'{verb} {' ; '.join(parts)}'"
                )


def task_hint(prompts: Iterable[str]) -> Iterator[str]:
    """A line for each prompt that begins nearly as a task does, or that names a file."""
    for prompt in prompts:
        first = (prompt.split() or [""])[0]
        if os.path.exists(prompt):  # noqa: PTH110 - any text
            yield short_line(f"the prompt {prompt!r} is a file: PROMPT comes before PATHS")
        elif first.lower() not in _TASKS:
            for near in difflib.get_close_matches(first.lower(), _TASKS, 1, _NEAR):
                yield short_line(f"{prompt!r} is asked as it stands; did you mean {near}?")


def left_out_hint(left_out: Mapping[str, int]) -> Iterator[str]:
    """A line about the files of folders and globs that are no images."""
    if left_out:
        kinds = kinds_text(left_out)
        yield short_line(f"left out of folders and globs, no images by their names: {kinds}")


def kinds_text(counts: Mapping[str, int]) -> str:
    """How many files have which ending of their names, the most frequent kinds first."""
    kinds = sorted(counts.items(), key=lambda kind: (-kind[1], kind[0]))
    named = [f"{count:,} {suffix or 'without an ending'}" for suffix, count in kinds[:_KINDS]]
    more = sum(count for _, count in kinds[_KINDS:])
    return short_line(", ".join(named + [f"{more:,} others"] * bool(more)))
