"""How many bytes of requests the server takes in: of one, and of all that are on their way."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from paligemma_edge.runtime.serve.errors import RETRY_SECONDS, ApiError
from paligemma_edge.runtime.size_text import size_text


@dataclass
class _Received:
    """Bytes of the requests that are being received."""

    most: int
    now: int = 0

    def add(self, size: int) -> None:
        """Count some; ApiError where there are too many."""
        if self.now + size > self.most:
            raise ApiError(
                503,
                "too many large requests are being received at the moment; try again soon",
                type="overloaded_error",
                code="too_many_bytes",
                retry_after=RETRY_SECONDS,
            )
        self.now += size


class BodyLimit:
    """Ends requests with ApiError whose body is too large, alone or beside all others.

    Bodies are counted until the whole of one was handed on: from then on the queue counts it.
    """

    def __init__(self, app: ASGIApp, most: int, most_together: int) -> None:
        self._app, self._most = app, most
        self._together = _Received(most_together)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a body that counts itself; ApiError where it is too large."""
        body = _Body(receive, self._most, self._together)
        body.check_announced(Headers(scope=scope).get("content-length"))
        try:
            await self._app(scope, body.receive, send)
        finally:
            body.release()


@dataclass
class _Body:
    """One body on its way."""

    source: Receive
    most: int
    together: _Received
    size: int = 0
    counted: int = 0

    def check_announced(self, length: str | None) -> None:
        """Refuse before anything is read what says that it will be too large."""
        if length is not None and int(length) > self.most:
            raise _too_large(self.most)

    async def receive(self) -> Message:
        """The next piece."""
        message = await self.source()
        if message["type"] == "http.request":
            self._count(len(message.get("body", b"")))
            if not message.get("more_body", False):
                self.release()
        return message

    def release(self) -> None:
        """Count it no longer among those on their way."""
        self.together.now -= self.counted
        self.counted = 0

    def _count(self, size: int) -> None:
        self.size += size
        if self.size > self.most:
            raise _too_large(self.most)
        self.together.add(size)
        self.counted += size


def _too_large(most: int) -> ApiError:
    return ApiError(
        413,
        f"the request is larger than {size_text(most)}, which is the most that is taken; send a "
        "smaller image",
        code="request_too_large",
        retry=False,
    )
