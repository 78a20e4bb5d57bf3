"""Log-probabilities of an answer's tokens in OpenAI's form; the end of an answer has none.

Knows tokens, bytes and numbers. Knows nothing of requests.
"""

from __future__ import annotations

from collections.abc import Iterable

from paligemma_edge.runtime.results.generation import Generation, TokenLogProb
from paligemma_edge.runtime.serve.chat_wire import TokenLogProbs, TopLogProb
from paligemma_edge.runtime.text.tokenizer import PromptEncoder

_LEAST = -9999.0  # how OpenAI's API writes the logarithm of nothing; JSON has no infinity
_END = "<eos>"


def token_logprobs(
    encoder: PromptEncoder, token: TokenLogProb, likeliest: Iterable[TokenLogProb]
) -> TokenLogProbs:
    """A token of the answer and the likeliest in its place."""
    top = [TopLogProb(*_written(encoder, one)) for one in likeliest]
    return TokenLogProbs(*_written(encoder, token), top)


def answer_logprobs(
    encoder: PromptEncoder, generation: Generation, length: int
) -> list[TokenLogProbs]:
    """All tokens that wrote the first `length` characters of an answer."""
    starts = (0, *generation.char_offsets[:-1])
    tops = generation.top_log_probs or ((),) * len(starts)
    return [
        token_logprobs(encoder, TokenLogProb(token, log_prob), top)
        for token, log_prob, start, top in zip(
            generation.token_ids, generation.log_probs, starts, tops, strict=True
        )
        if start < length and token not in encoder.config.eos_ids
    ]


def _written(encoder: PromptEncoder, token: TokenLogProb) -> tuple[str, float, list[int] | None]:
    """A token's text, log-probability and bytes; what ends an answer has a name and no bytes."""
    log_prob = max(token.log_prob, _LEAST)
    if token.token_id in encoder.config.eos_ids:
        return _END, log_prob, None
    raw = encoder.token_bytes(token.token_id)
    return raw.decode("utf-8", "replace"), log_prob, list(raw)
