"""Labels of objects, as they are in prompts and in answers."""

from __future__ import annotations

from collections.abc import Iterable

from paligemma_edge.runtime.errors import PromptError

_RESERVED = ";<>"  # what ends a label


def is_label(text: str) -> bool:
    """Whether an answer can hold this as a label."""
    return bool(text.strip()) and not any(sign in text for sign in _RESERVED)


def checked_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """The labels without duplicates and extra blanks; PromptError for an unusable one."""
    wanted = "wanted names such as 'cat'"
    if isinstance(labels, str) or not isinstance(labels, Iterable) or not (given := tuple(labels)):
        raise PromptError(f"the labels are {labels!r}, {wanted}")
    for label in given:
        if not isinstance(label, str) or not label.strip():
            raise PromptError(f"a label is {label!r}, {wanted}")
        if not is_label(label):
            raise PromptError(
                f"the label {label!r} holds ';', '<' or '>', which end a label in an answer; "
                "leave them out"
            )
    return tuple(dict.fromkeys(" ".join(label.split()) for label in given))
