"""The answers to a typed request on their way to the client: whole, or as server-sent events.

Knows events and answers. What takes a moment, such as the masks of a large image, is done in a
thread.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TypeAlias

import msgspec
from starlette.requests import Request

from paligemma_edge.runtime.scheduling.events import Event, Finished, ObjectFound, TokenGenerated
from paligemma_edge.runtime.serve.answering import Answering
from paligemma_edge.runtime.serve.errors import as_api_error, error_body
from paligemma_edge.runtime.serve.sse import sse
from paligemma_edge.runtime.serve.state import server_state
from paligemma_edge.runtime.serve.typed_answers import (
    AnswerStyle,
    PromptAnswers,
    StreamedObject,
    StreamedToken,
)

PlacedEvents: TypeAlias = AsyncGenerator[tuple[int, Event], None]
_ENCODER = msgspec.json.Encoder()


async def whole_body(
    request: Request, style: AnswerStyle, events: PlacedEvents, *, as_list: bool
) -> bytes:
    """The answer as JSON.

    Args:
        request: whose client may leave before.
        style: what the answer is to look like.
        events: of all questions.
        as_list: whether the answers are given as a list.

    Raises:
        CancelledError: the client left.
    """
    answering = server_state(request).answering
    async with aclosing(events):
        finished = await answering.while_connected(request, _all_finished(events))

    def encoded() -> bytes:
        if not as_list:
            return _ENCODER.encode(style.document(finished[0]))
        results = [style.prompt_answer(one) for one in finished]
        about = style.about
        return _ENCODER.encode(
            PromptAnswers(
                id=about.id, model=about.model, image=about.image, results=results, notes=[]
            )
        )

    return await answering.in_worker(encoded)


async def streamed(
    answering: Answering, style: AnswerStyle, events: PlacedEvents
) -> AsyncGenerator[bytes, None]:
    """The answer as server-sent events; one of an error is the last.

    Args:
        answering: has threads.
        style: what the answer is to look like.
        events: of all questions; closed with the stream.
    """
    messages = _Messages(style)
    async with aclosing(events):
        try:
            yield messages.start()
            async for index, event in events:
                if isinstance(event, ObjectFound | Finished):
                    message = await answering.in_worker(_later(messages, index, event))
                else:
                    message = messages.of(index, event)
                if message:
                    yield message
            yield sse(b"{}", "done")
        except Exception as error:  # the headers are sent: a message is what is left to tell it by
            yield sse(error_body(as_api_error(error)), "error")


@dataclass(frozen=True, eq=False)
class _Messages:
    """What events are to a client."""

    style: AnswerStyle
    _objects: Counter[int] = field(default_factory=Counter)  # that were given, by question

    def start(self) -> bytes:
        """The message before all others."""
        return sse(_ENCODER.encode(self.style.about), "start")

    def of(self, index: int, event: Event) -> bytes:
        """The message of an event; empty where it says nothing."""
        match event:
            case TokenGenerated(text=text) if text:
                return sse(_ENCODER.encode(StreamedToken(index, text)), "token")
            case ObjectFound(detection=detection) if self.style.shows(detection):
                number = self._objects[index]
                self._objects[index] += 1
                found = StreamedObject(index, number, self.style.detected(detection))
                return sse(_ENCODER.encode(found), "object")
            case Finished():
                return sse(_ENCODER.encode(self.style.answer(event, index)), "result")
        return b""


def _later(messages: _Messages, index: int, event: Event) -> Callable[[], bytes]:
    return lambda: messages.of(index, event)


async def _all_finished(events: PlacedEvents) -> list[Finished]:
    """The answers in the order of their questions."""
    finished = {place: event async for place, event in events if isinstance(event, Finished)}
    return [finished[place] for place in sorted(finished)]
