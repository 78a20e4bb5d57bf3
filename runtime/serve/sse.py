"""Server-sent events: a stream of small messages that stays alive while there is nothing to say.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import ExitStack, aclosing, suppress

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

PING = b": ping\n\n"  # a comment, which every client drops
PING_SECONDS = 1.0  # proxies and clients gave up on slower ones
HEADERS = {
    "content-type": "text/event-stream",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",  # nginx would hold the stream back
}


def sse(data: bytes, event: str | None = None) -> bytes:
    """One event; `data` is one line, as JSON is."""
    name = f"event: {event}\n".encode() if event else b""
    return b"%sdata: %s\n\n" % (name, data)


class EventStream(StreamingResponse):
    """Messages as they come, with pings between them.

    However the response ends, the messages and what they hold, such as places in the queue, are
    closed before it has: a client that leaves while one is sent would else leave them to the
    garbage collector.
    """

    def __init__(self, messages: AsyncGenerator[bytes, None], held: ExitStack) -> None:
        self._messages, self._pinged, self._held = messages, with_pings(messages), held
        super().__init__(self._pinged, headers=HEADERS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream."""
        with self._held:
            async with aclosing(self._messages), aclosing(self._pinged):
                await super().__call__(scope, receive, send)


async def with_pings(
    messages: AsyncIterator[bytes], seconds: float = PING_SECONDS
) -> AsyncGenerator[bytes, None]:
    """The messages, and a ping wherever none came for so many seconds."""
    pending: asyncio.Task[bytes] | None = None
    try:
        while True:
            pending = pending or asyncio.ensure_future(_next(messages))
            done, _ = await asyncio.wait((pending,), timeout=seconds)
            if not done:
                yield PING
                continue
            try:
                message = pending.result()
            except StopAsyncIteration:
                return
            pending = None
            yield message
    finally:
        if pending is not None:
            pending.cancel()
            with suppress(asyncio.CancelledError, StopAsyncIteration, Exception):
                await pending


async def _next(messages: AsyncIterator[bytes]) -> bytes:
    return await anext(messages)
