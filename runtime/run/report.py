"""What a user sees of a run while it goes on: answers, failures, notes and progress.

Knows the terminal. Knows nothing of files or of a model.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from paligemma_edge.runtime.errors import ImageError
from paligemma_edge.runtime.results.result import ChoiceResult, ObjectResult
from paligemma_edge.runtime.run.console import Console
from paligemma_edge.runtime.run.progress import Progress
from paligemma_edge.runtime.run.queries import InOrder, QueryResult, Result

CUT = " [cut by --max-new-tokens]"

Style: TypeAlias = Literal["text", "json", "none"]  # what standard output gets


@dataclass
class Report:
    """Prints the results in the order of their queries, and counts those that failed."""

    style: Style
    names: bool  # whether a line of text names the image
    prompts: bool  # whether it names the prompt
    progress: Progress | None
    console: Console = field(default_factory=Console.standard)
    failures: int = 0
    _noted: set[str] = field(default_factory=set)  # notes that were printed
    _left: dict[str, int] = field(default_factory=dict)  # of an image, queries without a result

    def __post_init__(self) -> None:
        self._in_order = InOrder(self._show)

    def __call__(self, result: QueryResult) -> None:
        """Take a result, in any order."""
        self._in_order(result)
        failed = isinstance(result.outcome, ImageError)
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
            self._message(message)

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
            self._print(json.dumps(result.record))
        elif isinstance(result.outcome, ImageError):
            self._message(_printable(str(result.outcome)))
        elif self.style == "text":
            self._print(self._line(result))

    def _print(self, line: str) -> None:
        if self.progress is not None:
            self.progress.clear()
        self.console.print(line)

    def _line(self, result: QueryResult) -> str:
        answer = result.outcome
        assert not isinstance(answer, ImageError)
        parts = [result.source.name] * self.names + [result.prompt] * self.prompts
        return _printable(": ".join([*parts, answer.text])) + _remark(answer)

    def _show_notes(self, result: ObjectResult) -> None:
        for note in result.notes:
            self.note(note)

    def _message(self, message: str) -> None:
        if self.progress is not None:
            self.progress.clear()
        self.console.message(message)


def _remark(result: Result) -> str:
    """What follows a text: the probability of a choice, or that it was cut."""
    if isinstance(result, ChoiceResult):
        return f" ({100 * result.confidence:.0f} %)"
    return CUT if result.finish_reason == "length" else ""


def _printable(text: str) -> str:
    """The text with control characters escaped: names and answers may hold any of them."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)
