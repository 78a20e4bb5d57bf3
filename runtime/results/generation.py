"""What the model answered to a prompt: tokens, their text, and how likely each of them was.

Knows ids, text and places in it. Knows nothing of images.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple, TypeAlias

from paligemma_edge.runtime.results.confidence import ObjectLogProbs, confidence_of, mean
from paligemma_edge.runtime.text.parse_answer import ParsedAnswer, parse_answer
from paligemma_edge.runtime.text.tokenizer import PromptEncoder, TextStream
from paligemma_edge.runtime.timing import Stage

FinishReason: TypeAlias = Literal["stop", "length"]  # its end-of-sequence token, or the limit
_NUMBERED = re.compile("<(loc|seg)[0-9]+>")


class TokenLogProb(NamedTuple):
    """A token, and the model's log-probability for it in its place."""

    token_id: int
    log_prob: float


@dataclass(frozen=True)
class Generation:
    """The answer to one prompt.

    Args:
        prompt: what was asked, as it was typed.
        text: the answer, `<loc>` and `<seg>` tokens included.
        token_ids: the answer's tokens; the end-of-sequence id is the last where `finish_reason` is
            "stop".
        log_probs: log-probability that the model gave to each token, before any grammar or
            temperature.
        char_offsets: how much of the text was certain after each token, in characters.
        box_log_probs: by the place in `token_ids` of each token that begins a box: the
            log-probability that any `<loc>` comes there, whichever it is.
        finish_reason: "stop", or "length" where the token limit cut the answer.
        seconds: time of each stage.
        top_log_probs: for each token the most likely ones in its place, the likeliest first, where
            they were asked for.
    """

    prompt: str
    text: str
    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    char_offsets: tuple[int, ...]
    box_log_probs: Mapping[int, float]
    finish_reason: FinishReason
    seconds: dict[Stage, float] = field(compare=False)
    top_log_probs: tuple[tuple[TokenLogProb, ...], ...] = ()

    @cached_property
    def answer(self) -> ParsedAnswer:
        """The boxes and segmentation codes that the text holds."""
        return parse_answer(self.text)

    @property
    def confidence(self) -> float:
        """exp(log_prob), 0..1: the geometric mean of the tokens' probabilities."""
        return confidence_of(self.log_prob)

    @property
    def log_prob(self) -> float:
        """Mean log-probability of the tokens, the one that ends the answer included."""
        return mean(self.log_probs)

    @property
    def object_log_probs(self) -> tuple[ObjectLogProbs, ...]:
        """How likely the parts of each object of `answer` were, in order."""
        spoken = [self._places(span) for span in self.answer.spans]
        ends = [places.stop for places in spoken]
        separators = [range(0), *map(range, ends, [places.start for places in spoken[1:]])]
        return tuple(map(self._parts, separators, spoken))

    def _places(self, span: tuple[int, int]) -> range:
        """Places in `token_ids` of the tokens that wrote a part of the text; it is not empty."""
        starts = (0, *self.char_offsets)
        places = [
            place
            for place, (start, end) in enumerate(zip(starts, self.char_offsets, strict=False))
            if start < span[1] and end > span[0]
        ]
        return range(places[0], places[-1] + 1)

    def _parts(self, separator: range, places: range) -> ObjectLogProbs:
        def log_probs(kind: str) -> tuple[float, ...]:
            return tuple(self.log_probs[place] for place in places if self._kind(place) == kind)

        return ObjectLogProbs(
            separator=tuple(self.log_probs[place] for place in separator),
            box=self.box_log_probs.get(places[0], self.log_probs[places[0]]),
            corners=log_probs("loc"),
            codes=log_probs("seg"),
            label=log_probs(""),
        )

    def _kind(self, place: int) -> str:
        """ "loc" or "seg" for a token of that kind, else empty."""
        start = self.char_offsets[place - 1] if place else 0
        match = _NUMBERED.fullmatch(self.text, start, self.char_offsets[place])
        return "" if match is None else match[1]


def decode_with_offsets(encoder: PromptEncoder, ids: Sequence[int]) -> tuple[str, tuple[int, ...]]:
    """The text of an answer, and its length in characters after each of its tokens."""
    stream, text, offsets = TextStream(encoder), "", []
    for token in ids:
        text += stream.push(token)
        offsets.append(len(text))
    return text + stream.finish(), tuple(offsets)
