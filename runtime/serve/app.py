"""The application: routes of all parts, behind what every request has to pass.

In this order: it gets an id and a line in the log, whatever fails is answered in one form, then
come the names of the server, keys, and the size of the body.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from paligemma_edge.runtime.serve.auth import ApiKeys, Authentication
from paligemma_edge.runtime.serve.chat import chat_routes
from paligemma_edge.runtime.serve.error_answers import ErrorAnswers, as_ours
from paligemma_edge.runtime.serve.errors import ApiError
from paligemma_edge.runtime.serve.health import health_routes, info_route
from paligemma_edge.runtime.serve.hosts import HostCheck
from paligemma_edge.runtime.serve.limits import BodyLimit
from paligemma_edge.runtime.serve.metrics import metrics_route
from paligemma_edge.runtime.serve.models import model_routes
from paligemma_edge.runtime.serve.operations import openapi_routes
from paligemma_edge.runtime.serve.options import ServerOptions
from paligemma_edge.runtime.serve.page import page_routes
from paligemma_edge.runtime.serve.readiness import Readiness
from paligemma_edge.runtime.serve.request_log import RequestLog
from paligemma_edge.runtime.serve.state import ServerState
from paligemma_edge.runtime.serve.typed import typed_routes

_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
# A browser is to take nothing for what it is not said to be, and to show it in no stranger's page.
_HEADERS = {
    "x-content-type-options": "nosniff",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
}


def create_app(state: ServerState, readiness: Readiness | None = None) -> Starlette:
    """The application of a model that is loaded.

    Args:
        state: what the handlers share.
        readiness: whether it takes questions; default: it does.

    Raises:
        OptionError: the file of API keys cannot be used.
    """
    readiness = readiness or Readiness("ready")
    routes = [
        *health_routes(readiness),
        *model_routes(),
        *chat_routes(),
        *typed_routes(),
        *openapi_routes(),
        info_route(state),
        metrics_route(state.metrics),
        *(page_routes() if state.options.page else ()),
    ]
    app = guarded_app(state.options, routes, state.metrics.refused)
    app.state.server = state
    return app


def create_loading_app(options: ServerOptions, readiness: Readiness) -> Starlette:
    """What answers while the model loads: the server lives, and has nothing else to say."""

    async def not_yet(_request: Request) -> Response:
        readiness.check()
        raise AssertionError("the model is there")

    routes = [*health_routes(readiness), Route("/{path:path}", not_yet, methods=_METHODS)]
    return guarded_app(options, routes, lambda _error: None)


def guarded_app(
    options: ServerOptions, routes: Sequence[BaseRoute], refused: Callable[[ApiError], None]
) -> Starlette:
    """Routes behind all that a request has to pass; `refused` is told of every error."""
    keys = None if options.api_keys is None else ApiKeys.read(options.api_keys)
    return Starlette(
        routes=routes,
        middleware=[
            Middleware(RequestLog),
            Middleware(_BrowserHeaders),
            Middleware(ErrorAnswers, refused=refused),
            Middleware(HostCheck, allowed=options.allowed_hosts),
            Middleware(Authentication, keys=keys),
            Middleware(BodyLimit, most=options.max_body, most_together=options.max_bodies),
        ],
        exception_handlers={HTTPException: as_ours},
    )


class _BrowserHeaders:
    """Adds headers for browsers to every answer that has not set them itself."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, with_headers)
