"""Ids and lines of requests, which quote nobody's prompt and are commanded by nobody."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from paligemma_edge.runtime.errors import DeviceError, ImageError
from paligemma_edge.runtime.serve.app import guarded_app
from paligemma_edge.runtime.serve.options import ServerOptions
from paligemma_edge.runtime.serve.request_log import JsonLines, request_id_of
from tests.helpers.serving import Address, Log, logged, served


async def hello(request: Request) -> Response:
    return PlainTextResponse(request_id_of(request))


async def bad(_request: Request) -> Response:
    raise ImageError("the image is cut short")


async def broken(_request: Request) -> Response:
    raise ZeroDivisionError("0x7f00dead of the heap")


async def failing(_request: Request) -> Response:
    raise DeviceError("CUDA failed at 0x7f00dead")


async def midway(_request: Request) -> Response:
    async def pieces() -> Iterator[bytes]:  # type: ignore[misc]
        yield b"begun"
        raise ZeroDivisionError("midway")

    return StreamingResponse(pieces())


ROUTES = [
    Route(f"/{endpoint.__name__}", endpoint) for endpoint in (hello, bad, broken, failing, midway)
]


@pytest.fixture(scope="module")
def server() -> Iterator[Address]:
    with served(guarded_app(ServerOptions(), ROUTES, lambda _: None)) as address:
        yield address


@pytest.fixture
def log() -> Iterator[Log]:
    with logged() as log:
        yield log


def test_each_request_has_an_id_and_a_line(server: Address, log: Log) -> None:
    first, second = (server.ask("/hello?labels=my+secret") for _ in range(2))
    assert first.headers["x-request-id"] == first.body.decode()
    assert first.body != second.body
    lines = log.requests(2)
    assert [line["request_id"] for line in lines] == [first.body.decode(), second.body.decode()]
    line = lines[0]
    assert (line["method"], line["path"], line["status"]) == ("GET", "/hello", 200)
    assert line["client"] == "127.0.0.1"
    assert line["bytes"] == len(first.body)
    assert "secret" not in log.text


def test_a_path_commands_nothing(server: Address, log: Log) -> None:
    path = "/%1b%5b2J%0aGET%20/forged%20200" + "x" * 3000
    assert server.ask(path).status == 404
    (line,) = log.requests()
    assert str(line["path"]).isprintable()
    assert len(str(line["path"])) <= 200
    assert all(record.getMessage().isprintable() for record in log.records)


def test_what_a_client_did_wrong_is_no_error(server: Address, log: Log) -> None:
    reply = server.ask("/bad")
    assert (reply.status, reply.code) == (400, "image_unreadable")
    assert reply.json["error"]["message"] == "the image is cut short"
    log.requests()
    assert not [record for record in log.records if record.levelno > logging.INFO]


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [("/broken", 500, "internal_error"), ("/failing", 503, "device_error")],
)
def test_what_went_wrong_inside_is_told_to_the_log_alone(
    server: Address, log: Log, path: str, status: int, code: str
) -> None:
    reply = server.ask(path)
    assert (reply.status, reply.code) == (status, code)
    assert b"0x7f00dead" not in reply.body
    assert b"Traceback" not in reply.body
    log.requests()
    assert "0x7f00dead" in log.text


def test_an_answer_that_fails_midway_is_cut(server: Address, log: Log) -> None:
    data = server.raw(b"GET /midway HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert data.endswith(b"begun\r\n")  # the last chunk is missing
    (line,) = log.requests()
    assert line["ended"] == "early"


def test_refusals_of_paths_and_methods_have_our_form(server: Address) -> None:
    missing = server.ask("/nope")
    assert (missing.status, missing.code) == (404, "path_not_found")
    wrong = server.ask("/hello", "DELETE")
    assert (wrong.status, wrong.code) == (405, "method_not_allowed")
    assert set(wrong.headers["allow"].split(", ")) == {"GET", "HEAD"}
    assert server.ask("/hello", "HEAD").body == b""


def test_browsers_are_told_what_not_to_do(server: Address) -> None:
    for path in ("/hello", "/nope"):
        headers = server.ask(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "server" not in headers


def test_json_lines_are_one_object_each() -> None:
    record = logging.LogRecord("a", logging.WARNING, "", 1, "two\nlines \u202e %s", ("x",), None)
    line = JsonLines().format(record)
    assert "\n" not in line
    assert line.isascii()
    entry = json.loads(line)
    assert (entry["level"], entry["message"]) == ("warning", "two\nlines \u202e x")
    assert entry["time"].endswith("Z")
    record.fields = {"event": "request", "status": 200}
    assert json.loads(JsonLines().format(record))["status"] == 200
