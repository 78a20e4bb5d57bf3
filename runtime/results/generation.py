"""What the model said to a prompt: tokens, their text, and how likely each of them was.

Knows ids, text and places in it. Knows nothing of images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from paligemma_edge.runtime.text.parse_answer import ParsedAnswer, parse_answer
from paligemma_edge.runtime.text.tokenizer import PromptEncoder, TextStream
from paligemma_edge.runtime.timing import Stage


@dataclass(frozen=True)
class Generation:
    """What the model said to one prompt.

    `token_ids` ends with the end-of-sequence id unless the answer was cut by its token limit,
    which `truncated` tells. `log_probs` are those that the model gave to the tokens, before any
    grammar or temperature. `seconds` holds the time that each stage took.
    """

    prompt: str
    text: str
    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    ends: tuple[int, ...]  # how much of the text was certain after each token, in characters
    truncated: bool
    seconds: dict[Stage, float] = field(compare=False)

    @property
    def answer(self) -> ParsedAnswer:
        """The boxes and segmentation codes that the text holds."""
        return parse_answer(self.text)

    @property
    def score(self) -> float:
        """Mean log-probability of the tokens, the one that ends the answer included."""
        return sum(self.log_probs) / len(self.log_probs)

    def score_of(self, span: tuple[int, int]) -> float:
        """Mean log-probability of the tokens that wrote a part of the text.

        `span` is the part's first character and the one behind it; it is not empty.
        """
        starts = (0, *self.ends)
        chosen = [
            log_prob
            for start, end, log_prob in zip(starts, self.ends, self.log_probs, strict=False)
            if start < span[1] and end > span[0]
        ]
        return sum(chosen) / len(chosen)


def decode_with_offsets(encoder: PromptEncoder, ids: Sequence[int]) -> tuple[str, tuple[int, ...]]:
    """The text of an answer, and how long it was after each of its tokens."""
    stream, text, ends = TextStream(encoder), "", []
    for token in ids:
        text += stream.push(token)
        ends.append(len(text))
    return text + stream.finish(), tuple(ends)
