"""Texts that end an answer, found while it grows; none of them is ever shown."""

from __future__ import annotations

from collections.abc import Sequence


class StopTexts:
    """Lets text through as soon as it cannot be the beginning of a stop text.

    Of several the one that begins first ends the answer, of these the one that is complete first.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.shown = ""
        self.found = False

    def push(self, piece: str, *, ended: bool) -> str:
        """More of the answer → what can be shown now; all of it where the answer has ended."""
        text = self._held + piece
        places = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if places:
            self.found, shown, self._held = True, text[: min(places)], ""
        else:
            held = 0 if ended else max((_overlap(text, stop) for stop in self._stops), default=0)
            shown, self._held = text[: len(text) - held], text[len(text) - held :]
        self.shown += shown
        return shown


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of a text that a stop text begins with."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
