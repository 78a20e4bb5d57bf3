"""HTTP/1.1 on one connection, by uvicorn and h11, within limits that uvicorn has not.

A whole request has to arrive in time, a client has to read its answer, chunks have to carry
something, and what is no HTTP is answered in our form. A client's fault is no line of an error log.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol
from uvicorn.server import ServerState as UvicornState

from paligemma_edge.runtime.serve.errors import RETRY_SECONDS, ApiError, error_body
from paligemma_edge.runtime.serve.options import ServerOptions
from paligemma_edge.runtime.serve.request_log import log_request, new_request_id

_RECEIVING = (h11.IDLE, h11.SEND_BODY)  # states of a client that has not sent all of a request
_CAN_ANSWER = (h11.IDLE, h11.SEND_RESPONSE)  # states of a server that may begin an answer
_VERSIONS = (b"1.0", b"1.1")
_HEADER_BYTES = 16384
_SMALL_CHUNKS = 4096  # of a body that may be as small as they like
_CHUNK_BYTES = 256  # that each of the others has to carry on average
_LINGER_SECONDS = 2.0  # for a client to read why it was refused, while it may still be sending
_READ_RATE = 1024  # bytes a second that a client has to read at least


@dataclass(frozen=True)
class ConnectionLimits:
    """What one connection may do; see `ServerOptions`."""

    connections: int
    body: int
    receive_seconds: float
    stall_seconds: float

    @classmethod
    def of(cls, options: ServerOptions) -> ConnectionLimits:
        """Those of a server."""
        return cls(
            options.max_connections,
            options.max_body,
            options.receive_seconds,
            options.stall_seconds,
        )


class _Connection(h11.Connection):
    """h11's reading of a connection, which counts chunks and remembers why it gave up."""

    def __init__(self) -> None:
        super().__init__(h11.SERVER, _HEADER_BYTES)
        self.refusal_status = 400
        self.method = b""  # of the last request
        self._chunks, self._bytes = 0, 0

    def next_event(self) -> Any:  # noqa: ANN401 - h11's own events and sentinels
        """The next event; RemoteProtocolError for what is no HTTP."""
        try:
            event = super().next_event()
        except h11.RemoteProtocolError as error:
            self.refusal_status = error.error_status_hint
            raise
        if isinstance(event, h11.Request):
            self.method, self._chunks, self._bytes = event.method, 0, 0
            self._check(event)
        elif isinstance(event, h11.Data):
            self._count(event)
        return event

    def _check(self, request: h11.Request) -> None:
        """h11 takes any version, and headers of any size if they come at once."""
        if request.http_version not in _VERSIONS:
            raise h11.RemoteProtocolError("another version")
        size = len(request.target) + sum(len(name) + len(value) for name, value in request.headers)
        if size > _HEADER_BYTES:
            self.refusal_status = 431
            raise h11.RemoteProtocolError("long headers", 431)

    def _count(self, event: h11.Data) -> None:
        """Each chunk costs time, whatever it holds."""
        self._chunks += event.chunk_start
        self._bytes += len(event.data)
        if self._chunks > _SMALL_CHUNKS + self._bytes // _CHUNK_BYTES:
            self.refusal_status = 413
            raise h11.RemoteProtocolError("too many chunks", 413)


class ServerProtocol(H11Protocol):
    """One connection."""

    def __init__(
        self,
        config: Config,
        server_state: UvicornState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limits: ConnectionLimits,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.conn: _Connection = _Connection()
        self.logger = _SILENT
        self._limits = limits
        self._receiving: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._discarded = 0  # bytes that came after the answer to them
        self._refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has come."""
        super().connection_made(transport)
        if len(self.connections) > self._limits.connections:
            self._refuse(_too_many_connections())
        else:
            self._expect_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client, or we, have left."""
        self._stop_expecting()
        self._stop_watching()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """A part of a request, or of several."""
        if self._refused:
            self._discard(len(data))
            return
        self._expect_request()
        answered = self.cycle is not None and self.cycle.response_complete
        if answered and self.conn.their_state is h11.SEND_BODY:
            self._discard(len(data))
        if not self.transport.is_closing():
            super().data_received(data)
        self._settle()

    def on_response_complete(self) -> None:
        """An answer was handed to the transport as a whole."""
        self._discarded = 0
        super().on_response_complete()
        self._watch_reader()
        self._settle()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's own words
        """Refuse what is no HTTP."""
        self._refuse(_malformed(self.conn.refusal_status))

    def pause_writing(self) -> None:
        """The client reads more slowly than it is answered."""
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        """The client has caught up."""
        super().resume_writing()
        self._stop_watching()

    def shutdown(self) -> None:
        """The server stops."""
        if self._refused:
            self._close()
        else:
            super().shutdown()
            self._watch_reader()

    def timeout_keep_alive_handler(self) -> None:
        """No other request came."""
        super().timeout_keep_alive_handler()
        self._watch_reader()

    def _settle(self) -> None:
        """Wait for what is missing of a request, and read no further than one request."""
        if self._refused or self.transport.is_closing():
            return
        buffered = bool(self.conn.trailing_data[0])
        if self.conn.their_state in _RECEIVING:
            if self.conn.their_state is h11.IDLE and not buffered:
                self._stop_expecting()  # the timer of idle connections is uvicorn's
            else:
                self._expect_request()
            return
        self._stop_expecting()
        if buffered:  # uvicorn may think that it has paused already
            self.flow.read_paused = True
            self.transport.pause_reading()
        else:  # to see the client leave
            self.flow.resume_reading()

    def _expect_request(self) -> None:
        if self._receiving is None and not self.transport.is_closing():
            seconds = self._limits.receive_seconds
            self._receiving = self.loop.call_later(seconds, self._give_up_waiting)

    def _stop_expecting(self) -> None:
        if self._receiving is not None:
            self._receiving.cancel()
            self._receiving = None

    def _give_up_waiting(self) -> None:
        """The request did not arrive in time; a connection without any is closed silently."""
        self._receiving = None
        begun = self.conn.their_state is h11.SEND_BODY or self.conn.trailing_data[0]
        if begun:
            self._refuse(_too_slow(self._limits.receive_seconds))
        else:
            self._close()

    def _discard(self, size: int) -> None:
        """Swallow what a client still sends of a request that was answered, within limits."""
        self._discarded += size
        if self._discarded > self._limits.body:
            self._close()

    def _refuse(self, error: ApiError) -> None:
        """Answer with an error, if that is still possible, and close."""
        request_id = new_request_id()
        if self.conn.our_state in _CAN_ANSWER:
            for event in _answer(error, request_id, has_body=not self._asked_for_headers()):
                self.transport.write(self.conn.send(event) or b"")
        log_request(
            logging.INFO,
            request_id,
            status=error.status,
            code=error.code,
            client=self.client[0] if self.client else "local",
        )
        self._end_request()
        self._linger()

    def _asked_for_headers(self) -> bool:
        """Whether the request that is refused, if it was understood so far, is of HEAD."""
        return self.conn.our_state is h11.SEND_RESPONSE and self.conn.method == b"HEAD"

    def _linger(self) -> None:
        """Close, but not before the client could read its answer.

        A connection that is closed with unread bytes is reset, and its answer lost.
        """
        self._refused, self._discarded = True, 0
        if self.conn.our_state is h11.SEND_BODY or not self.transport.can_write_eof():
            self._close()
            return
        self.transport.write_eof()
        self.flow.resume_reading()
        self._receiving = self.loop.call_later(_LINGER_SECONDS, self._close)
        self._watch_reader()

    def _close(self) -> None:
        """Let go of the connection once all was sent, and of the request that it carries."""
        self._end_request()
        self.transport.close()
        self._watch_reader()

    def _end_request(self) -> None:
        """Tell the handler that nobody waits for its answer."""
        self._stop_expecting()
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def _watch_reader(self) -> None:
        """From time to time, see that what was written gets less."""
        size = self.transport.get_write_buffer_size()
        if size and self._unread is None:
            seconds = self._limits.stall_seconds
            self._unread = self.loop.call_later(seconds, self._check_reader, size)

    def _check_reader(self, before: int) -> None:
        self._unread = None
        size = self.transport.get_write_buffer_size()
        if size > before - _READ_RATE * self._limits.stall_seconds and size:
            self.transport.abort()
        else:
            self._watch_reader()

    def _stop_watching(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None


# uvicorn's own words about clients: each is a line of our log already.
_SILENT = logging.getLogger("paligemma_edge.serve.uvicorn")
_SILENT.setLevel(logging.CRITICAL)


def _answer(error: ApiError, request_id: str, *, has_body: bool) -> list[h11.Event]:
    body = error_body(error)
    headers = {
        **error.headers,
        "content-length": str(len(body)),
        "connection": "close",
        "x-request-id": request_id,
    }
    phrase = STATUS_PHRASES[error.status]
    return [
        h11.Response(status_code=error.status, headers=list(headers.items()), reason=phrase),
        h11.Data(data=body if has_body else b""),
        h11.EndOfMessage(),
    ]


def _malformed(status: int) -> ApiError:
    if status == 431:
        return ApiError(431, "the headers are too long", code="headers_too_large", retry=False)
    if status == 413:
        return ApiError(
            413,
            "the body comes in too many small chunks; send larger ones",
            code="too_many_chunks",
            retry=False,
        )
    return ApiError(400, "this is no valid HTTP/1.1", code="http_invalid", retry=False)


def _too_slow(seconds: float) -> ApiError:
    return ApiError(
        408,
        f"the request did not arrive within {seconds:g} seconds",
        type="timeout_error",
        code="request_timeout",
    )


def _too_many_connections() -> ApiError:
    return ApiError(
        503,
        "too many connections are open; try again soon",
        type="overloaded_error",
        code="too_many_connections",
        retry_after=RETRY_SECONDS,
    )
