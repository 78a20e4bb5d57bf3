"""Labels of objects, as they are in prompts and in answers."""

from __future__ import annotations

from collections.abc import Iterable

from paligemma_edge.runtime.errors import PromptError

_RESERVED = ";<>"  # what ends a label


def checked_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """The labels without duplicates and extra blanks; PromptError for an unusable one."""
    wanted = "wanted names such as 'cat'"
    if isinstance(labels, str) or not isinstance(labels, Iterable) or not (given := tuple(labels)):
        raise PromptError(f"the labels are {labels!r}, {wanted}")
    for label in given:
        if not isinstance(label, str) or not label.strip():
            raise PromptError(f"a label is {label!r}, {wanted}")
        if any(sign in label for sign in _RESERVED):
            raise PromptError(
                f"the label {label!r} holds ';', '<' or '>', which end a label in an answer; "
                "leave them out"
            )
    return tuple(dict.fromkeys(" ".join(label.split()) for label in given))
