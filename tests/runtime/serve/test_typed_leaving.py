"""Clients that leave, and more of them than there is room for: no slot and no place stays taken."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from paligemma_edge.runtime.scheduling.reservation import QueueLimits
from paligemma_edge.runtime.scheduling.scheduler import Scheduler
from tests.helpers.serving import SECONDS, Address, logged, served
from tests.helpers.typed_app import as_text, asked, error_of, running_app

PROMPTS = ["caption en", "detect star", "segment star", "answer en what?"]
LIMIT = 3
MANY = 20


@pytest.fixture(scope="module")
def app(shapes_bundle: Path) -> Iterator[Starlette]:
    with running_app(shapes_bundle, QueueLimits(jobs=LIMIT), max_prompts=len(PROMPTS)) as app:
        yield app


@pytest.fixture(scope="module")
def address(app: Starlette) -> Iterator[Address]:
    with served(app) as address:
        yield address


@pytest.fixture
def scheduler(app: Starlette) -> Scheduler:
    scheduler: Scheduler = app.state.server.answering.scheduler
    return scheduler


@pytest.fixture
def image(shapes_images: Path) -> Path:
    return shapes_images / "00.png"


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.005)


@contextlib.contextmanager
def held(scheduler: Scheduler) -> Iterator[None]:
    """The engine thread stands still: what is asked meanwhile waits."""
    loop = scheduler._slots
    assert loop is not None
    lock, reached = threading.Event(), threading.Event()
    admit = loop.admit

    def waiting(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401
        reached.set()
        lock.wait(SECONDS)
        return admit(*arguments, **named)

    loop.admit = waiting  # type: ignore[method-assign]
    try:
        yield
    finally:
        lock.set()
        loop.admit = admit  # type: ignore[method-assign]


def sent(address: Address, image: Path, **fields: Any) -> socket.socket:  # noqa: ANN401
    """A request whose answer is not read."""
    body = json.dumps({"image": as_text(image), **fields}).encode()
    head = (
        "POST /v1/generate HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    connection = address.connect()
    connection.sendall(head.encode() + body)
    return connection


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fields", [{"prompt": PROMPTS[0]}, {"prompts": PROMPTS[:LIMIT]}])
def test_one_that_leaves_gives_its_places_back(
    address: Address, scheduler: Scheduler, image: Path, stream: bool, fields: dict[str, Any]
) -> None:
    with held(scheduler):
        connection = sent(address, image, stream=stream, **fields)
        wait_for(lambda: scheduler.waiting + scheduler.running > 0)
        connection.close()
        wait_for(lambda: scheduler.waiting == 0)
    wait_for(lambda: scheduler.running == 0)
    assert address.ask("/livez").status == 200


def test_one_that_leaves_while_its_image_is_read_gives_its_place_back(
    address: Address, app: Starlette, scheduler: Scheduler, image: Path
) -> None:
    with logged() as log:
        for _ in range(MANY):
            sent(address, image, prompts=PROMPTS[:LIMIT], stream=True).close()
        log.requests(MANY)
    wait_for(lambda: scheduler.waiting == 0)
    client = TestClient(app, "http://localhost")
    assert asked(client, "generate", image, prompts=PROMPTS[:LIMIT])


def test_more_prompts_than_may_wait_are_refused_as_a_whole(
    app: Starlette, scheduler: Scheduler, image: Path
) -> None:
    client = TestClient(app, "http://localhost")
    body = {"image": as_text(image), "prompts": PROMPTS}
    for more in ({}, {"stream": True}):
        response = client.post("/v1/generate", json={**body, **more})
        assert response.status_code == 503
        assert error_of(response)["code"] == "queue_full"
        assert int(response.headers["retry-after"]) > 0
        assert scheduler.waiting == 0
    assert asked(client, "generate", image, prompts=PROMPTS[:LIMIT])


def test_more_prompts_than_the_server_takes_are_refused(app: Starlette, image: Path) -> None:
    body = {"image": as_text(image), "prompts": [*PROMPTS, "ocr"]}
    response = TestClient(app, "http://localhost").post("/v1/generate", json=body)
    error = error_of(response)
    assert (response.status_code, error["code"]) == (400, "too_many_prompts")
    assert error["param"] == "prompts"
