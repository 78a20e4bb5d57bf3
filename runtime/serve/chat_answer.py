"""An answer as a chat completion: whole, or in the chunks of a stream.

Knows results and OpenAI's form of them. Knows nothing of requests and of HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from msgspec import UNSET, UnsetType

from paligemma_edge.runtime.results.generation import FinishReason, TokenLogProb
from paligemma_edge.runtime.results.result import ChoiceResult, ObjectResult
from paligemma_edge.runtime.scheduling.events import Finished, TokenGenerated
from paligemma_edge.runtime.scheduling.image_store import StoredImage
from paligemma_edge.runtime.serve.chat_logprobs import answer_logprobs, token_logprobs
from paligemma_edge.runtime.serve.chat_wire import (
    ChatCompletion,
    ChatCompletionChunk,
    Choice,
    ChunkChoice,
    Delta,
    ImageInfo,
    LogProbs,
    Message,
    PaliGemmaAnswer,
    PromptTokensDetails,
    TokenLogProbs,
    Usage,
)
from paligemma_edge.runtime.serve.json_answer import JsonForm, JsonWriter
from paligemma_edge.runtime.text.tokenizer import PromptEncoder


@dataclass(frozen=True, eq=False, kw_only=True)
class ChatAnswer:
    """What all parts of an answer have in common, and how it is written.

    Args:
        id: of the completion.
        created: in seconds of Unix time.
        model: its name on the wire.
        images: what the prompt is about.
        preprocess: seconds of reading them.
        notes: what of the request was not read.
        encoder: writes tokens.
        json: the form that the answer is put into; None is plain text.
        logprobs: whether tokens are given with their log-probabilities.
        min_confidence: of an object that is given.
        seed: that sampling is done with.
    """

    id: str
    created: int
    model: str
    images: Sequence[StoredImage]
    preprocess: float
    notes: Sequence[str]
    encoder: PromptEncoder
    json: JsonForm | None
    logprobs: bool
    min_confidence: float
    seed: int | None

    def completion(self, finished: Finished) -> ChatCompletion:
        """The whole answer."""
        text = finished.result.text
        if self.json is not None:
            writer = JsonWriter(self.json)
            text = writer.push(text) + writer.finish()
        message = Message("assistant", text, None, self.details(finished))
        logprobs = LogProbs(self.all_logprobs(finished)) if self.logprobs else None
        choice = Choice(0, message, logprobs, _finish_reason(finished))
        usage = usage_of(finished)
        return ChatCompletion(self.id, "chat.completion", self.created, self.model, [choice], usage)

    def all_logprobs(self, finished: Finished) -> list[TokenLogProbs]:
        """Those of the tokens that wrote the text."""
        if finished.generation is None:
            return []
        return answer_logprobs(self.encoder, finished.generation, len(finished.result.text))

    def details(self, finished: Finished) -> PaliGemmaAnswer:
        """What OpenAI's form has no place for."""
        result = finished.result
        images = [ImageInfo(one.id, one.batch.width, one.batch.height) for one in self.images]
        answer = PaliGemmaAnswer(
            images=images,
            confidence=result.confidence,
            timings={
                "queue": finished.queue_seconds,
                "preprocess": self.preprocess,
                **dict(finished.seconds.items()),
            },
            notes=[*self.notes, *finished.notes],
            seed=UNSET if self.seed is None else self.seed,
        )
        if isinstance(result, ObjectResult):
            fields = result.filter(min_confidence=self.min_confidence).to_dict()
            answer.objects, answer.classes = fields["objects"], fields["classes"]
            answer.notes.extend(result.notes)
        return answer


@dataclass(eq=False)
class ChatStream:
    """The chunks of one answer, in the order of its events."""

    answer: ChatAnswer
    include_usage: bool
    _json: JsonWriter | None = None
    _sent: int = 0  # characters of the model's text
    _logprobs_sent: int = 0
    _logprobs: list[TokenLogProbs] = field(default_factory=list)  # not sent yet

    def __post_init__(self) -> None:
        if self.answer.json is not None:
            self._json = JsonWriter(self.answer.json)

    def first(self) -> ChatCompletionChunk:
        """The chunk that says whose turn it is."""
        return self._chunk(Delta(role="assistant", content=""))

    def grown(self, event: TokenGenerated) -> ChatCompletionChunk | None:
        """A chunk of the text that became certain, None where there is none."""
        answer = self.answer
        if answer.logprobs and event.token_id not in answer.encoder.config.eos_ids:
            token = TokenLogProb(event.token_id, event.log_prob)
            self._logprobs.append(token_logprobs(answer.encoder, token, event.top_log_probs))
        if not event.text:
            return None
        return self._text(event.text)

    def last(self, finished: Finished) -> list[ChatCompletionChunk]:
        """What is left of the text, why it ended, and what it took."""
        chunks, rest = [], finished.result.text[self._sent :]
        self._logprobs = []
        if self.answer.logprobs:
            self._logprobs = self.answer.all_logprobs(finished)[self._logprobs_sent :]
        if rest or self._logprobs or self._json is not None:
            chunks.append(self._text(rest, end=True))
        ended = self._chunk(Delta(), _finish_reason(finished))
        ended.paligemma = self.answer.details(finished)
        chunks.append(ended)
        if self.include_usage:
            chunks.append(self._usage(usage_of(finished)))
        return chunks

    def _text(self, piece: str, *, end: bool = False) -> ChatCompletionChunk:
        self._sent += len(piece)
        content = piece
        if self._json is not None:
            content = self._json.push(piece) + (self._json.finish() if end else "")
        logprobs = LogProbs(self._logprobs) if self.answer.logprobs else None
        self._logprobs_sent += len(self._logprobs)
        self._logprobs = []
        return self._chunk(Delta(content=content), logprobs=logprobs)

    def _chunk(
        self,
        delta: Delta,
        finish_reason: FinishReason | None = None,
        logprobs: LogProbs | None = None,
    ) -> ChatCompletionChunk:
        choice = ChunkChoice(0, delta, logprobs, finish_reason)
        return self._of([choice], None if self.include_usage else UNSET)

    def _usage(self, usage: Usage) -> ChatCompletionChunk:
        return self._of([], usage)

    def _of(
        self, choices: list[ChunkChoice], usage: Usage | UnsetType | None
    ) -> ChatCompletionChunk:
        answer = self.answer
        return ChatCompletionChunk(
            answer.id, "chat.completion.chunk", answer.created, answer.model, choices, usage
        )


def usage_of(finished: Finished) -> Usage:
    """Tokens of the images and the prompt, and of the answer."""
    return Usage(
        finished.prompt_tokens,
        finished.completion_tokens,
        finished.prompt_tokens + finished.completion_tokens,
        PromptTokensDetails(finished.image_tokens),
    )


def _finish_reason(finished: Finished) -> FinishReason:
    result = finished.result
    return "stop" if isinstance(result, ChoiceResult) else result.finish_reason
