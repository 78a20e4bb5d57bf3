"""What the model answered to a prompt: tokens, their text, and how likely each of them was.

Knows ids, text and places in it. Knows nothing of images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from paligemma_edge.runtime.results.confidence import confidence_of, mean
from paligemma_edge.runtime.text.parse_answer import ParsedAnswer, parse_answer
from paligemma_edge.runtime.text.tokenizer import PromptEncoder, TextStream
from paligemma_edge.runtime.timing import Stage

FinishReason: TypeAlias = Literal["stop", "length"]  # its end-of-sequence token, or the limit


@dataclass(frozen=True)
class Generation:
    """The answer to one prompt.

    `token_ids` ends with the end-of-sequence id where `finish_reason` is "stop"; "length" says that
    the token limit cut the answer. `log_probs` are those that the model gave to the tokens, before
    any grammar or temperature. `char_offsets` is how much of the text was certain after each token,
    in characters. `seconds` holds the time of each stage.
    """

    prompt: str
    text: str
    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    char_offsets: tuple[int, ...]
    finish_reason: FinishReason
    seconds: dict[Stage, float] = field(compare=False)

    @property
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

    def log_prob_of(self, span: tuple[int, int]) -> float:
        """Mean log-probability of the tokens that wrote a part of the text.

        `span` is the part's first character and the one after its last; it is not empty.
        """
        starts = (0, *self.char_offsets)
        return mean(
            [
                log_prob
                for start, end, log_prob in zip(
                    starts, self.char_offsets, self.log_probs, strict=False
                )
                if start < span[1] and end > span[0]
            ]
        )


def decode_with_offsets(encoder: PromptEncoder, ids: Sequence[int]) -> tuple[str, tuple[int, ...]]:
    """The text of an answer, and its length in characters after each of its tokens."""
    stream, text, offsets = TextStream(encoder), "", []
    for token in ids:
        text += stream.push(token)
        offsets.append(len(text))
    return text + stream.finish(), tuple(offsets)
