"""The models that a request may name: the bundle's own, and its LoRA adapters.

Source: https://platform.openai.com/docs/api-reference/models, and vLLM for `root`, `parent` and
`max_model_len`.
"""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from paligemma_edge.runtime.serve.chat_wire import Model, ModelList
from paligemma_edge.runtime.serve.errors import ApiError
from paligemma_edge.runtime.serve.state import ServerState, server_state

_JSON = "application/json"


def adapter_named(state: ServerState, model: str | None) -> str | None:
    """The adapter that a request's `model` names, None for the base, as where it is left out.

    Raises:
        ApiError: 404; there is no such model.
    """
    if model is None or model == state.model_id:
        return None
    if model in _adapters(state):
        return model
    names = ", ".join((state.model_id, *_adapters(state)))
    raise ApiError(
        404,
        f"the model {model[:100]!r} does not exist; there are {names}",
        type="not_found_error",
        code="model_not_found",
        param="model",
    )


async def list_models(request: Request) -> Response:
    """GET /v1/models: the base, then its adapters."""
    state = server_state(request)
    models = [_model(state, None), *(_model(state, name) for name in _adapters(state))]
    return Response(msgspec.json.encode(ModelList("list", models)), media_type=_JSON)


async def get_model(request: Request) -> Response:
    """GET /v1/models/{model}: one of them."""
    state = server_state(request)
    adapter = adapter_named(state, request.path_params["model"])
    return Response(msgspec.json.encode(_model(state, adapter)), media_type=_JSON)


def _model(state: ServerState, adapter: str | None) -> Model:
    return Model(
        id=adapter or state.model_id,
        object="model",
        created=state.created,
        owned_by="paligemma-edge",
        root=adapter or state.model_id,
        parent=None if adapter is None else state.model_id,
        max_model_len=state.answering.scheduler.model.pipeline.cache_pool.max_length,
    )


def _adapters(state: ServerState) -> tuple[str, ...]:
    return state.answering.scheduler.model.adapters.names


def model_routes() -> list[Route]:
    """The endpoints, also where a client was given an address without /v1 and adds none."""
    return [
        route
        for prefix in ("/v1", "")
        for route in (
            Route(f"{prefix}/models", list_models, methods=["GET"]),
            Route(f"{prefix}/models/{{model:path}}", get_model, methods=["GET"]),
        )
    ]
