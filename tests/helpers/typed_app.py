"""The application of a server in this process, and its answers as they are typed."""

from __future__ import annotations

import base64
import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from starlette.applications import Starlette
from starlette.testclient import TestClient

from paligemma_edge.runtime.loading.loaded_model import load_model
from paligemma_edge.runtime.scheduling.image_store import ImageStore
from paligemma_edge.runtime.scheduling.reservation import QueueLimits
from paligemma_edge.runtime.scheduling.scheduler import Scheduler, SchedulerLimits
from paligemma_edge.runtime.serve.answering import Answering
from paligemma_edge.runtime.serve.app import create_app
from paligemma_edge.runtime.serve.metrics import Metrics
from paligemma_edge.runtime.serve.options import ServerOptions
from paligemma_edge.runtime.serve.state import ServerState

MODEL_ID = "shapes"


class Response(Protocol):
    """What is read of an answer, of whichever client."""

    @property
    def status_code(self) -> int: ...
    @property
    def text(self) -> str: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    def json(self) -> Any: ...  # noqa: ANN401


@contextlib.contextmanager
def running_app(
    bundle: Path,
    limits: QueueLimits | None = None,
    slots: int = 2,
    **given: Any,  # noqa: ANN401
) -> Iterator[Starlette]:
    """The application of a bundle; `given` are options of the server."""
    model = load_model(bundle, "cpu", max_batch_size=slots)
    scheduler = Scheduler(model, SchedulerLimits(queue=limits or QueueLimits()))
    answering = Answering(scheduler, ImageStore(model.pipeline.images))
    options = ServerOptions(slots=slots, **given)
    state = ServerState(answering, options, Metrics(), MODEL_ID, int(time.time()))
    scheduler.start()
    try:
        yield create_app(state)
    finally:
        scheduler.close()
        answering.close()


@dataclass(frozen=True)
class Message:
    """One event of a stream."""

    name: str
    data: Any


def messages(body: str) -> list[Message]:
    """The events of a stream, without its pings."""
    parts = [part for part in body.split("\n\n") if part and not part.startswith(":")]
    split = [dict(line.split(": ", 1) for line in part.split("\n")) for part in parts]
    return [Message(one["event"], json.loads(one["data"])) for one in split]


def as_text(path: Path) -> str:
    """A file in base64."""
    return base64.b64encode(path.read_bytes()).decode()


def asked(client: TestClient, task: str, image: Path, **fields: Any) -> Any:  # noqa: ANN401
    """The answer to JSON."""
    response = client.post(f"/v1/{task}", json={"image": as_text(image), **fields})
    assert response.status_code == 200, response.text
    return response.json()


def streamed(client: TestClient, task: str, image: Path, **fields: Any) -> list[Message]:  # noqa: ANN401
    """The events that JSON is answered with."""
    body = {"image": as_text(image), "stream": True, **fields}
    response = client.post(f"/v1/{task}", json=body)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    return messages(response.text)


def error_of(response: Response) -> dict[str, Any]:
    """The error of an answer, whose form is that of all."""
    assert set(response.json()) == {"error"}
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "Traceback" not in response.text
    assert error["message"].isprintable()
    assert response.headers["x-request-id"].startswith("req_")
    return error
