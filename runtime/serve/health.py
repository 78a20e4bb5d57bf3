"""Whether the server lives and is ready, and what it serves.

`/livez` asks for the process alone, `/readyz` and `/health` for a model that answers. The paths
below `/v2` are those of the Open Inference Protocol
(https://github.com/kserve/open-inference-protocol).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from paligemma_edge.runtime.bundle.bundle import MANIFEST
from paligemma_edge.runtime.serve.options import ServerOptions
from paligemma_edge.runtime.serve.readiness import Readiness
from paligemma_edge.runtime.serve.state import ServerState

PROGRAM = "paligemma-edge"
_OK = {"status": "ok"}
Endpoint = Callable[[Request], Awaitable[Response]]


def health_routes(readiness: Readiness) -> list[Route]:
    """The routes that tell machines how the server is; none of them needs a key."""

    def ready(body: dict[str, Any]) -> Endpoint:
        async def answer(_request: Request) -> Response:
            readiness.check()
            return JSONResponse(body)

        return answer

    async def live(_request: Request) -> Response:
        return JSONResponse(_OK)

    async def live_v2(_request: Request) -> Response:
        return JSONResponse({"live": True})

    return [
        Route("/health", ready(_OK), name="health"),
        Route("/livez", live, name="livez"),
        Route("/readyz", ready(_OK), name="readyz"),
        Route("/v2/health/live", live_v2, name="live"),
        Route("/v2/health/ready", ready({"ready": True}), name="ready"),
    ]


def info_route(state: ServerState) -> Route:
    """The route that says what is served, and within which limits."""
    bundle_id = state.answering.scheduler.model.bundle.digest(MANIFEST)

    async def info(_request: Request) -> Response:
        return JSONResponse(_described(state, bundle_id))

    return Route("/v1/info", info, name="info")


def _described(state: ServerState, bundle_id: str) -> dict[str, Any]:
    scheduler = state.answering.scheduler
    model = scheduler.model
    manifest = model.bundle.manifest
    return {
        "name": PROGRAM,
        "version": version(PROGRAM),
        "bundle": {"name": state.model_id, "id": bundle_id},
        "variant": model.variant,
        "device": model.device,
        "adapters": sorted(manifest.adapters),
        "image_size": manifest.image.size,
        "max_model_len": scheduler.max_length,
        "slots": scheduler.slots,
        "running": scheduler.running,
        "waiting": scheduler.waiting,
        "masks": model.engine.decodes_masks,
        "regex": find_spec("llguidance") is not None,
        "limits": _limits(state.options),
    }


def _limits(options: ServerOptions) -> dict[str, float]:
    return {
        "timeout": options.timeout,
        "request_bytes": options.max_body,
        "images": options.max_images,
        "pixels": options.max_pixels,
        "prompts": options.max_prompts,
        "waiting": options.max_waiting,
        "waiting_per_client": options.max_waiting_per_client,
    }
