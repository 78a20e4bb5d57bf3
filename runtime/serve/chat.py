"""POST /v1/chat/completions: OpenAI's endpoint, answered by a model of single turns.

The order of a request: its body, its options, its prompt and images, a place in the queue, the
images read, the question checked, and the answer, whole or as a stream.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import dataclass

import msgspec
import numpy as np
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from paligemma_edge.runtime.errors import ImageError
from paligemma_edge.runtime.generation.pipeline import Pipeline
from paligemma_edge.runtime.generation.request import GenerationOptions
from paligemma_edge.runtime.generation.task_request import task_request
from paligemma_edge.runtime.images.batch import ImageBatch
from paligemma_edge.runtime.scheduling.events import Event, Finished, TokenGenerated
from paligemma_edge.runtime.scheduling.image_store import StoredImage
from paligemma_edge.runtime.scheduling.job import Question
from paligemma_edge.runtime.scheduling.reservation import Reservation
from paligemma_edge.runtime.serve.auth import client_of
from paligemma_edge.runtime.serve.chat_answer import ChatAnswer, ChatStream
from paligemma_edge.runtime.serve.chat_options import ChatOptions, read_options
from paligemma_edge.runtime.serve.chat_prompt import ChatPrompt, SentImage, read_messages
from paligemma_edge.runtime.serve.chat_wire import ChatRequest
from paligemma_edge.runtime.serve.errors import ApiError, as_api_error, error_body
from paligemma_edge.runtime.serve.image_body import image_of_url
from paligemma_edge.runtime.serve.json_body import json_body
from paligemma_edge.runtime.serve.models import adapter_named
from paligemma_edge.runtime.serve.request_log import request_id_of
from paligemma_edge.runtime.serve.sse import EventStream, sse
from paligemma_edge.runtime.serve.state import ServerState, server_state
from paligemma_edge.runtime.text.tasks import Task

_DECODER = msgspec.json.Decoder(ChatRequest)
_ENCODER = msgspec.json.Encoder()
_DONE = b"[DONE]"


@dataclass(frozen=True, eq=False)
class _Asked:
    """A request that was read: what is asked of which model, for whom."""

    state: ServerState
    adapter: str | None
    options: ChatOptions
    prompt: ChatPrompt
    client: str
    request_id: str

    async def images(self) -> list[StoredImage]:
        """The prompt's images, read; ApiError that names the one that cannot be."""
        return [await self._image(sent) for sent in self.prompt.images]

    async def _image(self, sent: SentImage) -> StoredImage:
        answering = self.state.answering
        encoded = await answering.in_worker(lambda: image_of_url(sent.url, sent.param))
        try:
            return await answering.image(encoded)
        except ImageError as error:
            raise ApiError(
                400, f"{sent.param}: {error}", code="image_unreadable", param=sent.param
            ) from None

    async def question(self) -> Question:
        """The question, checked."""
        return await self.state.answering.question(
            lambda pipeline: _question(pipeline, self.prompt, self.options), self.adapter
        )

    def answer(
        self, images: Sequence[StoredImage], preprocess: float, question: Question
    ) -> ChatAnswer:
        """How the answer is written; reading the images took `preprocess` seconds."""
        options, model = self.options, self.state.answering.scheduler.model
        return ChatAnswer(
            id=f"chatcmpl-{self.request_id.removeprefix('req_')}",
            created=int(time.time()),
            model=self.adapter or self.state.model_id,
            images=images,
            preprocess=preprocess,
            notes=(*self.prompt.notes, *options.notes, *_limit_note(options, question)),
            encoder=model.encoder,
            json=options.json,
            logprobs=options.top_logprobs is not None,
            min_confidence=options.min_confidence,
            seed=None if options.sampling is None else options.sampling.seed,
        )

    def events(
        self, question: Question, images: Sequence[StoredImage], reservation: Reservation
    ) -> AsyncGenerator[Event, None]:
        """The events of the answer."""
        most, wanted = self.state.options.timeout, self.options.timeout
        return self.state.answering.events(
            question,
            _together(images),
            reservation,
            timeout=most if wanted is None else min(most, wanted),
            adapter=self.adapter,
            client=self.client,
            stop=self.options.stop,
            supersede=self.options.supersede,
        )


async def chat_completions(request: Request) -> Response:
    """POST /v1/chat/completions.

    Source: https://platform.openai.com/docs/api-reference/chat/create
    """
    asked = await _read(request)
    sent = sum(len(image.url) for image in asked.prompt.images)
    answering = asked.state.answering
    with ExitStack() as places:
        reservation = places.enter_context(
            answering.reserve(asked.client, sent, len(asked.prompt.images))
        )
        start = time.perf_counter()
        images = await asked.images()
        preprocess = time.perf_counter() - start
        question = await asked.question()
        answer = asked.answer(images, preprocess, question)
        events = asked.events(question, images, reservation)
        if not asked.options.stream:
            return await _whole(request, asked, answer, events)
        stream = ChatStream(answer, asked.options.include_usage)
        return EventStream(_messages(asked, stream, events), places.pop_all())


async def _read(request: Request) -> _Asked:
    state = server_state(request)
    body = await json_body(request, _DECODER)
    adapter, options = adapter_named(state, body.model), read_options(body)
    prompt = read_messages(
        body.messages,
        max_images=state.options.max_images,
        default_task=state.options.default_task,
        strict=state.options.strict_chat,
    )
    return _Asked(state, adapter, options, prompt, client_of(request), request_id_of(request))


async def _whole(
    request: Request, asked: _Asked, answer: ChatAnswer, events: AsyncGenerator[Event, None]
) -> Response:
    answering = asked.state.answering
    finished = await answering.finished(request, events)
    # In a thread: the masks of a large image take a moment.
    body = await answering.in_worker(lambda: _ENCODER.encode(answer.completion(finished)))
    return Response(body, media_type="application/json")


async def _messages(
    asked: _Asked, stream: ChatStream, events: AsyncGenerator[Event, None]
) -> AsyncGenerator[bytes, None]:
    """The messages of a stream; one of an error is the last."""
    async with aclosing(events):
        try:
            yield sse(_ENCODER.encode(stream.first()))
            async for event in events:
                if isinstance(event, TokenGenerated):
                    if (chunk := stream.grown(event)) is not None:
                        yield sse(_ENCODER.encode(chunk))
                elif isinstance(event, Finished):
                    for one in await asked.state.answering.in_worker(_last(stream, event)):
                        yield sse(one)
            yield sse(_DONE)
        except Exception as error:  # the headers are sent: a message is what is left to tell it by
            yield sse(error_body(as_api_error(error)))


def _last(stream: ChatStream, finished: Finished) -> Callable[[], list[bytes]]:
    return lambda: list(map(_ENCODER.encode, stream.last(finished)))


def _question(pipeline: Pipeline, prompt: ChatPrompt, options: ChatOptions) -> Question:
    """The question of a pipeline; PromptError, OptionError or ApiError where it is refused."""
    count = len(prompt.images)
    if count > 1 and Task.of(prompt.text).labels is not None:
        raise ApiError(
            400,
            f"there are {count} images, wanted one: the boxes of detect and segment lie in one "
            "image; ask about each in a request of its own",
            code="too_many_images",
            param="messages",
        )
    settings = GenerationOptions(
        max_new_tokens=_max_new_tokens(pipeline, prompt, options.max_tokens),
        sampling=options.sampling,
        grammar=options.grammar,
        top_log_probs=options.top_logprobs or 0,
    )
    return task_request(pipeline, prompt.text, settings, options.objects, image_count=count)


def _max_new_tokens(pipeline: Pipeline, prompt: ChatPrompt, wanted: int | None) -> int | None:
    """As many tokens as are wanted and fit: clients ask for thousands without a thought."""
    ids = pipeline.encoder.encode(prompt.text, len(prompt.images))
    most = pipeline.cache_pool.max_length
    length = len(prompt.images) * pipeline.engine.config.image_tokens + len(ids)
    if length >= most:
        raise ApiError(
            400,
            f"the prompt is too long: with its images it takes {length} tokens, and this model's "
            f"maximum context length is {most}, answer included; shorten it or send fewer images",
            code="context_length_exceeded",
            param="messages",
        )
    return None if wanted is None else min(wanted, most - length)


def _limit_note(options: ChatOptions, question: Question) -> tuple[str, ...]:
    allowed, wanted = question.request.max_new_tokens, options.max_tokens
    if wanted is None or allowed == wanted:
        return ()
    return (f"max_tokens was lowered from {wanted} to {allowed}, which is what the model holds",)


def _together(images: Sequence[StoredImage]) -> ImageBatch:
    """The images of one prompt as one batch."""
    first = images[0].batch
    if len(images) == 1:
        return first
    pixels = np.concatenate([one.batch.pixel_values for one in images])
    return ImageBatch(pixels, first.width, first.height)


def chat_routes() -> list[Route]:
    """The endpoint, also where a client was given an address without /v1 and adds none."""
    return [
        Route(f"{prefix}/chat/completions", chat_completions, methods=["POST"])
        for prefix in ("/v1", "")
    ]
