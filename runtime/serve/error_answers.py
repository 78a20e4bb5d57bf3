"""Whatever goes wrong while a request is answered becomes an answer, in one form."""

from __future__ import annotations

import logging
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from paligemma_edge.runtime.scheduling.errors import CancelledError
from paligemma_edge.runtime.serve.errors import ApiError, as_api_error, error_body

_LOG = logging.getLogger("paligemma_edge.serve")


class ErrorAnswers:
    """Answers in the place of a handler that failed.

    A client that has left is no failure: nobody is there to be answered. `refused` is told of each
    error.
    """

    def __init__(self, app: ASGIApp, refused: Callable[[ApiError], None]) -> None:
        self._app, self._refused = app, refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, whatever happens."""
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except (ClientDisconnect, CancelledError):
            pass
        except Exception as error:
            told = as_api_error(error)
            self._refused(told)
            if started:  # the connection is cut, by which the client sees it
                _LOG.error("an answer ended early: %s", told)
                return
            await send_error(told, scope, receive, send)


async def send_error(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with an error.

    A client that waits for a word to send its body may send another request in its place, or not:
    the connection ends.
    """
    waits = "expect" in Headers(scope=scope)
    headers = {**error.headers, "connection": "close"} if waits else error.headers
    response = Response(error_body(error), error.status, headers)
    await response(scope, receive, send)


async def as_ours(request: Request, error: Exception) -> Response:
    """Starlette's own refusals of paths and methods, in our form."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        raise ApiError(
            404,
            f"there is no {request.url.path}; /openapi.json lists what there is",
            type="not_found_error",
            code="path_not_found",
        )
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        refusal = ApiError(
            405,
            f"{request.url.path} is not asked by {request.method}; use {allowed}",
            code="method_not_allowed",
        )
        return Response(error_body(refusal), 405, {**refusal.headers, "allow": allowed})
    raise ApiError(error.status_code, "the request cannot be answered", code="bad_request")
