"""What a user sees of a run while it goes on: answers, failures, notes and progress.

Knows the terminal. Knows nothing of files or of a model.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from paligemma_edge.runtime.results.result import ChoiceResult, ObjectResult
from paligemma_edge.runtime.run.class_ids import ClassIds
from paligemma_edge.runtime.run.progress import RunProgress
from paligemma_edge.runtime.run.queries import Failure, InOrder, QueryResult, Result
from paligemma_edge.runtime.system.console import Console

CUT = " [cut by --max-new-tokens]"
NOTHING = "nothing found"

Style: TypeAlias = Literal["text", "json", "none"]  # what standard output gets


@dataclass
class Report:
    """Prints the results in the order of their queries, and counts those that failed."""

    style: Style
    names: bool  # whether an answer in words names the image
    prompts: bool  # whether it names the prompt
    progress: RunProgress | None
    raw: bool = False  # whether objects are printed as the model's own text
    console: Console = field(default_factory=Console.standard)
    classes: ClassIds = field(default_factory=lambda: ClassIds(()))
    failures: int = 0
    _noted: set[str] = field(default_factory=set)  # notes that were printed
    _left: dict[str, int] = field(default_factory=dict)  # of an image, queries without a result

    def __post_init__(self) -> None:
        self._in_order = InOrder(self._show)

    def __call__(self, result: QueryResult) -> None:
        """Take a result, in any order."""
        self._in_order(result)
        failed = isinstance(result.outcome, Failure)
        self.failures += failed
        left = self._left.pop(result.source.name, result.siblings) - 1
        if left:
            self._left[result.source.name] = left
        elif self.progress is not None:
            self.progress.advance(failed=failed)

    def note(self, message: str) -> None:
        """Print a note for the user, unless it was printed already."""
        if message not in self._noted:
            self._noted.add(message)
            self._clear()
            self.console.note(message)

    def close(self) -> None:
        """Print the results that still wait for earlier ones, and the last line of progress."""
        self._in_order.flush()
        if self.progress is not None:
            self.progress.close()

    def _show(self, result: QueryResult) -> None:
        if isinstance(result.outcome, ObjectResult):
            self._show_notes(result.outcome)
        if self.style == "json":
            # In ASCII, which is JSON on every terminal and for every name of a file.
            self._clear()
            self.console.exact(json.dumps(self.classes.number(result.record)) + "\n")
        elif isinstance(result.outcome, Failure):
            self._clear()
            self.console.message(str(result.outcome))
        elif self.style == "text":
            self._clear()
            self._show_answer(result, result.outcome)

    def _show_answer(self, query: QueryResult, answer: Result) -> None:
        """Words in a line; objects in a line each, below the image's name where there is one."""
        about = ": ".join([query.source.name] * self.names + [query.prompt] * self.prompts)
        if not self.raw and isinstance(answer, ObjectResult):
            lines = object_lines(answer)
            self.console.answer(
                *([f"{about}:", *(f"  {one}" for one in lines)] if about else lines)
            )
        elif about:
            self.console.answer(f"{about}: {answer.text}{_remark(answer)}")
        else:  # there is no other answer that its line breaks could be taken for
            self.console.write(f"{answer.text}{_remark(answer)}\n")

    def _show_notes(self, result: ObjectResult) -> None:
        for note in result.notes:
            self.note(note)

    def _clear(self) -> None:
        if self.progress is not None:
            self.progress.clear()


def object_lines(result: ObjectResult) -> list[str]:
    """Each object as its label, its confidence and its box in pixels; words where there is none."""
    lines = [f"{one.label} {one.confidence:.2f} {list(one.xyxy)}".lstrip() for one in result]
    if not lines:
        is_words = not any(sign in result.text for sign in ("<loc", "<seg"))
        own_words = result.text.strip() if is_words else ""
        lines = [own_words or NOTHING]
    return [*lines, *([CUT.strip()] if result.finish_reason == "length" else [])]


def _remark(result: Result) -> str:
    """What follows a text: the probability of a choice, or that it was cut."""
    if isinstance(result, ChoiceResult):
        return f" ({100 * result.confidence:.0f} %)"
    return CUT if result.finish_reason == "length" else ""
