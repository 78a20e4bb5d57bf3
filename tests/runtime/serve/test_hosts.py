"""By which names a server may be called, and from which pages."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from paligemma_edge.runtime.errors import OptionError
from paligemma_edge.runtime.serve.app import guarded_app
from paligemma_edge.runtime.serve.options import ServerOptions
from tests.helpers.serving import Address, replies, served

NAMES = ("box.example.com", "*.lan")


@pytest.fixture(scope="module")
def server() -> Iterator[Address]:
    async def hello(_request: object) -> PlainTextResponse:
        return PlainTextResponse("hello")

    options = ServerOptions(allowed_hosts=NAMES)
    app = guarded_app(options, [Route("/", hello, methods=["GET", "POST"])], lambda _: None)
    with served(app) as address:
        yield address


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:8000", 200),
        ("localhost.", 200),
        ("127.0.0.1:9", 200),
        ("192.168.0.7", 200),
        ("[::1]:8000", 200),
        ("kiosk.local", 200),
        ("box.example.com:443", 200),
        ("a.lan", 200),
        ("a.b.lan", 200),
        (".lan", 403),
        ("lan", 403),
        ("evil.com", 403),
        ("box.example.com.evil.com", 403),
        ("evil-box.example.com", 403),
        ("localhost.evil.com", 403),
        ("127.0.0.1.evil.com", 403),
        ("127.0.0.1@evil.com", 403),
        ("evil.com/localhost", 403),
        ("localhost:80:80", 403),
        ("[::1", 403),
        ("", 403),
        ("ki\u00f6sk.local", 403),
    ],
)
def test_the_name_decides(server: Address, host: str, status: int) -> None:
    head = b"GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n" % host.encode("latin-1")
    (reply,) = replies(server.raw(head))
    assert reply.status == status
    if status != 200:
        assert reply.code == "host_not_allowed"


def test_old_clients_name_nobody(server: Address) -> None:
    (reply,) = replies(server.raw(b"GET / HTTP/1.0\r\n\r\n"))
    assert reply.status == 200


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("localhost:8000", "http://localhost:8000", 200),
        ("localhost:8000", "HTTP://LOCALHOST:8000", 200),
        ("box.example.com", "https://box.example.com", 200),
        ("localhost:443", "https://localhost", 200),
        ("localhost", "http://localhost:80", 200),
        ("[::1]:8000", "http://[::1]:8000", 200),
        ("localhost:8000", "http://localhost", 403),
        ("localhost:8000", "http://localhost:8001", 403),
        ("localhost:8000", "http://127.0.0.1:8000", 403),
        ("localhost:8000", "http://evil.com", 403),
        ("localhost:8000", "null", 403),
        ("localhost:8000", "", 403),
        ("localhost:8000", "file://", 403),
        ("localhost:8000", "chrome-extension://localhost:8000", 403),
        ("localhost:8000", "http://localhost:8000/", 403),
        ("localhost:8000", "http://localhost:8000 http://evil.com", 403),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_the_page_decides(
    server: Address, method: str, host: str, origin: str, status: int
) -> None:
    reply = server.ask(method=method, headers={"Host": host, "Origin": origin})
    assert reply.status == status
    assert "access-control-allow-origin" not in reply.headers
    if status != 200:
        assert reply.code == "origin_not_allowed"


def test_a_second_origin_is_checked_too(server: Address) -> None:
    head = b"GET / HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\n"
    head += b"Origin: http://evil.com\r\nConnection: close\r\n\r\n"
    (reply,) = replies(server.raw(head))
    assert reply.status == 403


@pytest.mark.parametrize("name", ["", "a b", "http://a", "a:80", "a/b", "*"])
def test_what_is_no_name_is_no_option(name: str) -> None:
    with pytest.raises(OptionError, match="allowed host"):
        ServerOptions(allowed_hosts=(name,))
