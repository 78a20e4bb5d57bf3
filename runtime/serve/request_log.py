"""Each request gets an id and a line in the log: who asked where, how it ended, how long it took.

Knows nothing of what is asked: prompts, images and answers are nobody's business but the client's.
"""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from paligemma_edge.runtime.printable import short_line
from paligemma_edge.runtime.serve.auth import WITHOUT_KEY

_LOG = logging.getLogger("paligemma_edge.serve.requests")
_LONGEST = 200  # characters of a path
_LEFT = 499  # nginx's status for a client that did not wait, which no client ever sees
_POLLED = WITHOUT_KEY | {"/metrics"}  # every few seconds, by machines


def new_request_id() -> str:
    """An id that nobody can guess."""
    return f"req_{secrets.token_hex(12)}"


def request_id_of(request: Request) -> str:
    """The id that the client reads in `x-request-id`."""
    request_id: str = request.state.request_id
    return request_id


@dataclass
class _Exchange:
    """One request and what came of it."""

    scope: Scope
    request_id: str
    start: float = field(default_factory=time.monotonic)
    status: int = _LEFT
    sent: int = 0
    complete: bool = False

    def see(self, message: Message) -> None:
        """Note a part of the answer."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            MutableHeaders(scope=message)["x-request-id"] = self.request_id
        elif message["type"] == "http.response.body":
            self.sent += len(message.get("body", b""))
            self.complete = not message.get("more_body", False)

    def log(self) -> None:
        """Write the line."""
        path, client = self.scope["path"], self.scope.get("state", {}).get("client")
        level = logging.DEBUG if path in _POLLED and self.status < 400 else logging.INFO
        log_request(
            level,
            self.request_id,
            method=self.scope["method"],
            path=path,
            status=self.status,
            seconds=round(time.monotonic() - self.start, 4),
            bytes=self.sent,
            client=client or (self.scope.get("client") or ["local"])[0],
            **({} if self.complete else {"ended": "early"}),
        )


def log_request(level: int, request_id: str, **fields: object) -> None:
    """A line of the log about a request, with these fields in JSON."""
    shown = {
        name: short_line(value, _LONGEST) if isinstance(value, str) else value
        for name, value in {**fields, "request_id": request_id}.items()
    }
    text = " ".join(_words(shown))
    _LOG.log(level, "%s", text, extra={"fields": {"event": "request", **shown}})


def _words(fields: Mapping[str, object]) -> list[str]:
    """Fields whose meaning is seen by their form stand alone."""
    plain = ("method", "path", "status", "client", "request_id")
    return [str(value) if name in plain else f"{name}={value}" for name, value in fields.items()]


class RequestLog:
    """Gives each request its id and logs it when it has ended."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request under its id."""
        exchange = _Exchange(scope, new_request_id())
        scope.setdefault("state", {})["request_id"] = exchange.request_id

        async def seen(message: Message) -> None:
            exchange.see(message)
            await send(message)

        try:
            await self._app(scope, receive, seen)
        finally:
            exchange.log()


class JsonLines(logging.Formatter):
    """One JSON object in ASCII for each record."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as a line."""
        entry: dict[str, object] = {
            "time": _utc(record.created),
            "level": record.levelname.lower(),
            **getattr(record, "fields", {"message": record.getMessage()}),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def _utc(seconds: float) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds % 1 * 1000):03}Z"
