"""How `detect` and `segment` are answered: held to their form, to labels, and what ids count.

Needs no ONNX Runtime, so that a wrong option is reported without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from paligemma_edge.runtime.errors import OptionError
from paligemma_edge.runtime.grammar.task_grammar import Labels
from paligemma_edge.runtime.validation import check_flag


@dataclass(frozen=True, kw_only=True)
class ObjectOptions:
    """How `detect` and `segment` are answered. OptionError for values that cannot be used."""

    constrained: bool = True
    labels: Labels = "any"
    classes: Sequence[str] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "constrained", check_flag("constrained", self.constrained))
        if self.labels != "any" and not self.constrained:
            raise OptionError(
                f"labels is {self.labels!r} and constrained is False, but only a constrained "
                "answer is held to labels; leave one of the two out"
            )
        if self.classes is not None:
            _check_classes(self.classes)


def _check_classes(classes: Sequence[str]) -> None:
    listed = isinstance(classes, Sequence) and not isinstance(classes, str | bytes)
    if not listed or not classes or not all(isinstance(name, str) for name in classes):
        raise OptionError(f"classes is {classes!r}, wanted a list such as ['cat', 'dog']")
    if len(set(classes)) < len(classes):
        raise OptionError(f"classes is {classes!r}, wanted each name once")
