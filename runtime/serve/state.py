"""What all handlers share: the model behind its scheduler, the options, the figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.requests import Request

from paligemma_edge.runtime.serve.answering import Answering

if TYPE_CHECKING:
    from paligemma_edge.runtime.serve.metrics import Metrics
    from paligemma_edge.runtime.serve.options import ServerOptions


@dataclass(frozen=True, eq=False)
class ServerState:
    """The server as its handlers see it.

    Args:
        answering: asks the model.
        options: how the server was started.
        metrics: what is counted.
        model_id: the base model's name on the wire.
        created: when the server started, in seconds of Unix time.
    """

    answering: Answering
    options: ServerOptions
    metrics: Metrics
    model_id: str
    created: int


def server_state(request: Request) -> ServerState:
    """The state that `create_app` gave to the application."""
    state: ServerState = request.app.state.server
    return state
