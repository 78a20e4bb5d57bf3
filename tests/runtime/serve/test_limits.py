"""How much a server takes in, of one request and of all."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from paligemma_edge.runtime.errors import OptionError
from paligemma_edge.runtime.serve.app import guarded_app
from paligemma_edge.runtime.serve.options import ServerOptions
from tests.helpers.serving import Address, Reply, read_all, replies, served

MOST = 100_000
HEAD = b"POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"


class Bodies:
    """Reads requests, and tells how much of all of them has come."""

    def __init__(self) -> None:
        self.size = 0
        self.more = threading.Condition()

    async def answer(self, request: Request) -> Response:
        size = 0
        async for piece in request.stream():
            size += len(piece)
            with self.more:
                self.size += len(piece)
                self.more.notify_all()
        return PlainTextResponse(str(size))

    def wait_for(self, size: int) -> None:
        """Until so much has come."""
        with self.more:
            assert self.more.wait_for(lambda: self.size >= size, timeout=60)


@pytest.fixture
def bodies() -> Bodies:
    return Bodies()


@pytest.fixture
def server(bodies: Bodies) -> Iterator[Address]:
    options = ServerOptions(max_body=MOST, max_bodies=2 * MOST)
    routes = [Route("/", bodies.answer, methods=["POST"])]
    with served(guarded_app(options, routes, lambda _: None), max_body=MOST) as address:
        yield address


def chunked(*pieces: bytes) -> bytes:
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    return HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"


def only(data: bytes) -> Reply:
    (reply,) = replies(data)
    return reply


def test_what_is_large_enough_is_taken(server: Address) -> None:
    assert server.ask("/", "POST", body=b"x" * MOST).body == str(MOST).encode()
    assert only(server.raw(chunked(b"x" * MOST))).body == str(MOST).encode()


def test_one_byte_more_is_refused_before_it_is_read(server: Address) -> None:
    head = HEAD + b"Content-Length: %d\r\n\r\n" % (MOST + 1)
    reply = only(server.raw(head))  # of whose body nothing was sent
    assert (reply.status, reply.code) == (413, "request_too_large")
    assert reply.headers["x-should-retry"] == "false"


def test_one_byte_more_in_chunks_is_refused(server: Address) -> None:
    reply = only(server.raw(chunked(b"x" * MOST, b"x")))
    assert (reply.status, reply.code) == (413, "request_too_large")


def test_a_client_that_waits_for_a_word_is_spared_its_body(server: Address) -> None:
    head = b"POST / HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n"
    refused = server.raw(head + b"Content-Length: %d\r\n\r\n" % (MOST + 1))
    assert b"100 Continue" not in refused
    reply = only(refused)  # and the connection ends
    assert (reply.status, reply.headers["connection"]) == (413, "close")
    with server.connect() as one:
        one.sendall(head + b"Connection: close\r\nContent-Length: 3\r\n\r\n")
        assert one.recv(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
        one.sendall(b"abc")
        assert only(read_all(one)).body == b"3"


def test_more_at_a_time_is_refused_until_others_have_arrived(
    server: Address, bodies: Bodies
) -> None:
    size = MOST - 10
    head = HEAD + b"Content-Length: %d\r\n\r\n" % size
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(server.connect()) for _ in range(2)]
        for one in slow:
            one.sendall(head + b"x" * (size - 1))
        bodies.wait_for(2 * (size - 1))
        refused = server.ask("/", "POST", body=b"x" * 1000)
        assert (refused.status, refused.code) == (503, "too_many_bytes")
        assert int(refused.headers["retry-after"]) > 0
        slow[0].sendall(b"x")
        assert only(read_all(slow[0])).body == str(size).encode()
        assert server.ask("/", "POST", body=b"x" * 1000).status == 200
        slow[1].close()  # without the rest, whose place is free again
    while server.ask("/", "POST", body=b"x" * MOST).status != 200:
        pass


def test_limits_go_together() -> None:
    with pytest.raises(OptionError, match="max_bodies"):
        ServerOptions(max_body=100, max_bodies=99)
    for name in ("max_body", "max_waiting", "slots", "timeout", "drain", "max_connections"):
        for value in (0, -1, "4", None, float("nan")):
            with pytest.raises(OptionError, match=name):
                ServerOptions(**{name: value})  # type: ignore[arg-type]
