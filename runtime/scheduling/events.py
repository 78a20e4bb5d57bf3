"""What a job's listener is told, in this order: it started, tokens and objects, how it ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from paligemma_edge.runtime.results.detection import Detection
from paligemma_edge.runtime.results.generation import Generation, TokenLogProb
from paligemma_edge.runtime.results.result import ChoiceResult, ObjectResult, TextResult
from paligemma_edge.runtime.timing import Stage


@dataclass(frozen=True)
class Started:
    """The job has a slot; `queue_seconds` is how long it waited for it."""

    queue_seconds: float


@dataclass(frozen=True)
class TokenGenerated:
    """One more token of the answer.

    Args:
        text: the text that is certain now and was not before; it may be empty.
        token_id: the token.
        log_prob: the model's log-probability for it, before any grammar or temperature.
        top_log_probs: the most likely tokens in its place, as many as were asked for.
    """

    text: str
    token_id: int
    log_prob: float
    top_log_probs: tuple[TokenLogProb, ...] = ()


@dataclass(frozen=True)
class ObjectFound:
    """An object of the answer is complete; `number` counts from 0 in the order of the answer."""

    number: int
    detection: Detection


@dataclass(frozen=True)
class Finished:
    """The answer is complete.

    Args:
        result: what the question promises.
        generation: the answer token by token; None for a choice, which is scored.
        seconds: of each stage.
        queue_seconds: how long the job waited for a slot.
        prompt_tokens: of images and prompt together.
        image_tokens: of the images among them.
        completion_tokens: of the answer, its end included.
        notes: what whoever asked should know, beside the result's own notes.
    """

    result: TextResult | ObjectResult | ChoiceResult
    generation: Generation | None
    seconds: Mapping[Stage, float]
    queue_seconds: float
    prompt_tokens: int
    image_tokens: int
    completion_tokens: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Failed:
    """There will be no answer."""

    error: Exception


Event: TypeAlias = Started | TokenGenerated | ObjectFound | Finished | Failed
