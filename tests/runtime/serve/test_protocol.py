"""One connection: what is no HTTP, who is slow, who leaves. Limits are small: no test is long."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
import threading
from collections.abc import Iterator

import pytest
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from paligemma_edge.runtime.serve.app import guarded_app
from paligemma_edge.runtime.serve.options import ServerOptions
from tests.helpers.serving import Address, Log, logged, read_all, replies, served

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n"
POST = b"POST / HTTP/1.1\r\nHost: localhost\r\n"
CLOSE = b"Connection: close\r\n\r\n"
LARGE = 32 << 20
SHORT = {"receive_seconds": 0.3, "stall_seconds": 0.3, "keep_alive_seconds": 1}


class App:
    """Handlers that a test can look into."""

    def __init__(self) -> None:
        self.left = threading.Semaphore(0)
        self.waiting = threading.Semaphore(0)
        self.go_on = threading.Event()

    async def echo(self, request: Request) -> Response:
        try:
            return PlainTextResponse(f"{request.method} {len(await request.body())}")
        except ClientDisconnect:
            self.left.release()
            raise

    async def early(self, _request: Request) -> Response:
        return PlainTextResponse("early")

    async def large(self, _request: Request) -> Response:
        async def pieces() -> Iterator[bytes]:  # type: ignore[misc]
            try:
                for _ in range(LARGE >> 16):
                    yield b"x" * (1 << 16)
            finally:
                self.left.release()

        return StreamingResponse(pieces())

    async def wait(self, request: Request) -> Response:
        """Answers when it may, unless the client leaves."""
        await request.body()
        self.waiting.release()
        gone = asyncio.ensure_future(request.receive())
        while not self.go_on.is_set() and not gone.done():
            await asyncio.wait((gone,), timeout=0.01)
        if gone.done():
            self.left.release()
        gone.cancel()
        return PlainTextResponse("waited")

    def routes(self) -> list[Route]:
        both = ["GET", "POST"]
        return [
            Route("/", self.echo, methods=both),
            Route("/early", self.early, methods=both),
            Route("/large", self.large),
            Route("/wait", self.wait, methods=both),
        ]


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture
def log() -> Iterator[Log]:
    """No traceback and no error is logged for what a client does."""
    with logged() as log:
        yield log
    worse = [record for record in log.records if record.levelno > logging.INFO or record.exc_info]
    assert not worse, log.text


@pytest.fixture
def server(app: App, log: Log) -> Iterator[Address]:
    """One that has time, so that only the test decides."""
    with served(guarded_app(ServerOptions(), app.routes(), lambda _: None)) as address:
        yield address


@pytest.fixture
def hasty(app: App, log: Log) -> Iterator[Address]:
    """One that gives no time at all."""
    with served(guarded_app(ServerOptions(), app.routes(), lambda _: None), **SHORT) as address:
        yield address


MALFORMED = {
    "nothing of HTTP": b"hello\r\n\r\n",
    "binary": bytes(range(256)),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 64 + b"\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "another version": b"GET / HTTP/3.0\r\nHost: a\r\n\r\n",
    "no version": b"GET /\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": GET + b"Host: evil\r\n\r\n",
    "a space in the name of a header": GET + b"A b: c\r\n\r\n",
    "a space before a colon": GET + b"A : c\r\n\r\n",
    "a folded first header": b"GET / HTTP/1.1\r\n a: b\r\n\r\n",
    "NUL": GET + b"A: \0\r\n\r\n",
    "a bare CR": GET + b"A: b\rc: d\r\n\r\n",
    "two lengths": POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "a negative length": POST + b"Content-Length: -1\r\n\r\n",
    "a length that is no number": POST + b"Content-Length: 0x10\r\n\r\n",
    "a length of many digits": POST + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n",
    "an unknown coding": POST + b"Transfer-Encoding: gzip\r\n\r\n",
    "two codings": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
    "a chunk without size": POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    "a negative chunk": POST + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n",
    "a chunk that is longer": POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\nab\r\n",
    "a huge chunk": POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 100 + b"\r\n",
    "a header of 100 kB": GET + b"A: " + b"x" * 100_000 + b"\r\n\r\n",
    "a header of 100 MB": GET + b"A: " + b"x" * 100_000_000,
    "20,000 headers": GET + b"A: b\r\n" * 20_000 + b"\r\n",
    "a path of 100 kB": b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    "a path beyond ASCII": "GET /\u00e9 HTTP/1.1\r\nHost: a\r\n\r\n".encode(),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_what_is_no_http_is_refused_in_our_form(server: Address, log: Log, what: str) -> None:
    (reply,) = replies(server.raw(MALFORMED[what]))
    wanted = 431 if "100 " in what or "20,000" in what else 400
    assert (reply.status, reply.headers["connection"]) == (wanted, "close")
    assert reply.code == {400: "http_invalid", 431: "headers_too_large"}[wanted]
    assert server.ask().body == b"GET 0"
    log.requests()


def test_who_asks_for_headers_alone_gets_no_body(server: Address) -> None:
    head = POST.replace(b"POST", b"HEAD") + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"
    data = server.raw(head)
    assert data.startswith(b"HTTP/1.1 400 ")
    assert data.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    "request_line",
    [
        *(b"GET http://localhost/ HTTP/1.1", b"OPTIONS * HTTP/1.1", b"CONNECT a:443 HTTP/1.1"),
        *(b"GET /%00%ff%2e%2e/ HTTP/1.1", b"GET //evil.com HTTP/1.1", b"FROB / HTTP/1.1"),
    ],
)
def test_odd_requests_are_refused_too(server: Address, request_line: bytes) -> None:
    (reply,) = replies(server.raw(request_line + b"\r\nHost: localhost\r\n" + CLOSE))
    assert reply.status in (404, 405)
    assert reply.code


def test_a_wish_for_another_protocol_is_not_heeded(server: Address, app: App) -> None:
    for name in (b"websocket", b"h2c"):
        head = GET + b"Connection: Upgrade\r\nUpgrade: " + name + b"\r\n\r\n"
        with server.connect() as one:
            one.sendall(head)
            assert one.recv(12) == b"HTTP/1.1 200"
        with server.connect() as one:  # and it is seen to leave
            one.sendall(head.replace(b"GET /", b"GET /wait"))
            assert app.waiting.acquire(timeout=60)
        assert app.left.acquire(timeout=60)


def test_requests_one_after_the_other_are_answered_in_order(server: Address) -> None:
    many = (POST + b"Content-Length: 3\r\n\r\nabc" + GET + b"\r\n") * 20
    found = replies(server.raw(many + GET + CLOSE))
    assert [reply.body for reply in found] == [b"POST 3", b"GET 0"] * 20 + [b"GET 0"]


def test_a_body_in_pieces_of_any_size_arrives(server: Address) -> None:
    chunks = b"1\r\na\r\n" * 4000 + b"10000\r\n" + b"x" * 65536 + b"\r\n"
    body = b"Transfer-Encoding: chunked\r\n" + CLOSE + chunks + b"0\r\n\r\n"
    (reply,) = replies(server.raw(POST + body))
    assert reply.body == b"POST 69536"


def test_too_many_small_chunks_are_refused(server: Address) -> None:
    body = b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 5000
    with server.connect() as one:
        one.sendall(POST + body)
        (reply,) = replies(read_all(one))
    assert (reply.status, reply.code) == (413, "too_many_chunks")


def test_what_follows_an_early_answer_is_swallowed(server: Address) -> None:
    early = POST.replace(b"/ ", b"/early ") + b"Content-Length: 500000\r\n\r\n" + b"x" * 500_000
    found = replies(server.raw(early + GET + CLOSE))
    assert [reply.body for reply in found] == [b"early", b"GET 0"]


def test_but_not_without_end(app: App, log: Log) -> None:
    whole = guarded_app(ServerOptions(), app.routes(), lambda _: None)
    with served(whole, max_body=1 << 20) as server, server.connect() as one:
        one.sendall(POST.replace(b"/ ", b"/early ") + b"Transfer-Encoding: chunked\r\n\r\n")
        assert one.recv(12) == b"HTTP/1.1 200"
        chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
        with pytest.raises(ConnectionError):
            for _ in range(1000):
                one.sendall(chunk)


def test_a_flood_behind_a_request_is_not_read(server: Address, app: App) -> None:
    """After an early answer too, where uvicorn takes a paused connection for one that is not."""
    early = POST.replace(b"/ ", b"/early ") + b"Content-Length: 200000\r\n\r\n" + b"x" * 200_000
    with server.connect() as one:
        one.sendall(early + GET.replace(b"/ ", b"/wait ") + b"\r\n")
        assert app.waiting.acquire(timeout=60)
        one.setblocking(False)
        flood, sent = (GET + b"\r\n") * 1000, 0
        for _ in range(10):
            with contextlib.suppress(BlockingIOError):
                while sent < LARGE:
                    sent += one.send(flood)
            assert server.ask("/early").status == 200  # the server had time to read
        assert sent < LARGE
        app.go_on.set()


SLOW = {
    "nothing at all": b"",
    "half a request line": b"GET / HT",
    "half a header": GET + b"A: ",
    "half a body": POST + b"Content-Length: 10\r\n\r\nabc",
    "half a chunk": POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab",
    "half a second request": GET + b"\r\n" + GET,
}


@pytest.mark.parametrize("what", SLOW)
def test_a_request_that_does_not_come_is_given_up(hasty: Address, app: App, what: str) -> None:
    with hasty.connect() as one:
        one.sendall(SLOW[what])
        found = replies(read_all(one))
    if what == "nothing at all":
        assert not found
    elif what != "half a second request":  # whose connection is one that idles
        assert (found[-1].status, found[-1].code) == (408, "request_timeout")
    if "body" in what or "chunk" in what:
        assert app.left.acquire(timeout=60)


@pytest.mark.parametrize("start", [b"", POST + b"Content-Length: 1000000\r\n\r\n"])
def test_one_byte_now_and_then_is_no_request(hasty: Address, start: bytes) -> None:
    trickle = GET + b"A: " + b"x" * 100_000
    with hasty.connect() as one:
        one.sendall(start)
        one.settimeout(0.01)
        found = b""
        for place in range(len(trickle)):
            try:
                one.sendall(trickle[place : place + 1])
                found = one.recv(65536)
                break
            except TimeoutError:
                continue
            except ConnectionError:
                break
    assert not found or found.startswith(b"HTTP/1.1 408 ")


def test_an_answer_may_take_longer_than_a_request(hasty: Address, app: App) -> None:
    with hasty.connect() as slow, hasty.connect() as one:
        one.sendall(GET.replace(b"/ ", b"/wait ") + CLOSE)
        assert app.waiting.acquire(timeout=60)
        slow.sendall(b"GET / HT")
        assert read_all(slow)  # time has passed
        app.go_on.set()
        assert replies(read_all(one))[0].body == b"waited"


def test_one_that_does_not_read_is_cut_off(hasty: Address, app: App) -> None:
    with hasty.connect(receive_buffer=4096) as one:
        one.sendall(GET.replace(b"/ ", b"/large ") + b"\r\n")
        assert app.left.acquire(timeout=60)
        assert len(read_all(one)) < LARGE
        assert hasty.ask().status == 200


def test_one_that_reads_is_not(hasty: Address, app: App) -> None:
    data = hasty.raw(GET.replace(b"/ ", b"/large ") + CLOSE)
    assert len(data) > LARGE


def test_one_that_has_left_is_noticed(server: Address, app: App) -> None:
    for leave in ("close", "reset"):
        one = server.connect()
        one.sendall(GET.replace(b"/ ", b"/wait ") + b"\r\n")
        assert app.waiting.acquire(timeout=60)
        if leave == "reset":
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        one.close()
        assert app.left.acquire(timeout=60)
    with server.connect() as one:
        one.sendall(POST + b"Content-Length: 10\r\n\r\nabc")
    assert app.left.acquire(timeout=60)


def test_more_connections_than_may_be_are_refused(app: App, log: Log) -> None:
    whole = guarded_app(ServerOptions(), app.routes(), lambda _: None)
    with served(whole, max_connections=3) as server:
        some = [server.connect() for _ in range(3)]
        for one in some:
            one.sendall(GET + b"\r\n")
            assert one.recv(12) == b"HTTP/1.1 200"
        with server.connect() as one:
            (refused,) = replies(read_all(one))
        assert (refused.status, refused.code) == (503, "too_many_connections")
        some.pop().close()
        while server.ask().status != 200:
            pass
        for one in some:
            one.close()
