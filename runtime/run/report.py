"""What a user sees of a run while it goes on: answers, failures, notes and progress.

Knows the terminal. Knows nothing of files or of a model.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from paligemma_edge.runtime.errors import ImageError
from paligemma_edge.runtime.results.result import ChoiceResult, ObjectResult
from paligemma_edge.runtime.run.console import Console
from paligemma_edge.runtime.run.loop import InOrder, QueryResult, Result
from paligemma_edge.runtime.run.progress import Progress

CUT = " [cut by --max-new-tokens]"

Style: TypeAlias = Literal["text", "json", "none"]  # what standard output gets


@dataclass
class Report:
    """Prints what was answered, in the order of the images, and counts it."""

    style: Style
    names: bool  # whether a line of text names the image
    prompts: bool  # and the prompt
    progress: Progress | None
    console: Console = field(default_factory=Console.standard)
    failures: int = 0
    _told: set[str] = field(default_factory=set)  # notes, each of which is told once
    _left: dict[str, int] = field(default_factory=dict)  # queries of an image to come

    def __post_init__(self) -> None:
        self._in_order = InOrder(self._show)

    def __call__(self, answered: QueryResult) -> None:
        """Take an answer, in any order."""
        self._in_order(answered)
        failed = isinstance(answered.outcome, ImageError)
        self.failures += failed
        left = self._left.pop(answered.source.name, answered.siblings) - 1
        if left:
            self._left[answered.source.name] = left
        elif self.progress is not None:
            self.progress.advance(failed=failed)

    def note(self, message: str) -> None:
        """Tell what a user should know, once."""
        if message not in self._told:
            self._told.add(message)
            self._tell(message)

    def close(self) -> None:
        """Print what still waited for its turn, and how far it came."""
        self._in_order.flush()
        if self.progress is not None:
            self.progress.close()

    def _show(self, answered: QueryResult) -> None:
        if isinstance(answered.outcome, ObjectResult):
            self._tell_notes(answered.outcome)
        if self.style == "json":
            # In ASCII, which is JSON on every terminal and for every name of a file.
            self._print(json.dumps(answered.record))
        elif isinstance(answered.outcome, ImageError):
            self._tell(_shown(str(answered.outcome)))
        elif self.style == "text":
            self._print(self._line(answered))

    def _print(self, line: str) -> None:
        if self.progress is not None:
            self.progress.clear()
        self.console.print(line)

    def _line(self, answered: QueryResult) -> str:
        result = answered.outcome
        assert not isinstance(result, ImageError)
        parts = [answered.source.name] * self.names + [answered.prompt] * self.prompts
        return _shown(": ".join([*parts, result.text])) + _remark(result)

    def _tell_notes(self, result: ObjectResult) -> None:
        for note in result.notes:
            self.note(note)

    def _tell(self, message: str) -> None:
        if self.progress is not None:
            self.progress.clear()
        self.console.message(message)


def _remark(result: Result) -> str:
    """What is said behind a text: the share of a choice, or that it was cut."""
    if isinstance(result, ChoiceResult):
        return f" ({100 * math.exp(result.score):.0f} %)"
    return CUT if result.truncated else ""


def _shown(text: str) -> str:
    """A text without what would command a terminal: names and answers come from anywhere."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)
