"""API keys: who is let in, and what a file of keys may hold."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

import pytest
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from paligemma_edge.runtime.errors import OptionError
from paligemma_edge.runtime.serve.app import guarded_app
from paligemma_edge.runtime.serve.auth import WITHOUT_KEY, ApiKeys, client_of
from paligemma_edge.runtime.serve.options import ServerOptions
from tests.helpers.serving import served

SECRET, OTHER = "sk-camera-7", "sk-other"


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(
        f"# who\n\n camera:{digest(SECRET)} \nfrigate:{digest(OTHER).upper()}\n"
        f"camera:{digest('sk-next')}\n"
    )
    return path


@pytest.mark.parametrize(
    ("values", "client"),
    [
        (["Bearer sk-camera-7"], "camera"),
        (["bearer   sk-camera-7"], "camera"),
        (["Bearer sk-next"], "camera"),
        (["Bearer sk-other"], "frigate"),
        ([], None),
        ([""], None),
        (["Bearer"], None),
        (["Bearer "], None),
        (["Basic sk-camera-7"], None),
        (["sk-camera-7"], None),
        (["Bearer sk-camera-7 "], "camera"),
        (["Bearer sk-camera-7x"], None),
        ([f"Bearer {digest(SECRET)}"], None),
        (["Bearer sk-camera-7", "Bearer sk-camera-7"], None),
        (["Bearer \xff\xfe"], None),
    ],
)
def test_a_client_is_known_by_its_key(keys: Path, values: list[str], client: str | None) -> None:
    raw = [(b"authorization", value.encode("latin-1")) for value in values]
    assert ApiKeys.read(keys).client(Headers(raw=raw)) == client


def test_every_digest_is_compared(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append(one)
        return one == other

    monkeypatch.setattr(hmac, "compare_digest", compare)
    ApiKeys.read(keys).client(Headers({"authorization": f"Bearer {SECRET}"}))
    assert len(compared) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no key"),
        (b"# nothing\n\n", "holds no key"),
        (b"sk-secret\n", "line 1 is no name:sha256"),
        (b"a:" + b"0" * 63, "line 1 is no name:sha256"),
        (b"\n:" + b"0" * 64, "line 2 is no name:sha256"),
        (b"a b:" + b"0" * 64, "line 1 is no name:sha256"),
        (b"\xff\xfe", "is no text"),
        (b"#" * (1 << 20) + b"#", "larger than 1 MiB"),
    ],
)
def test_a_file_that_holds_anything_else_is_refused(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "keys"
    path.write_bytes(content)
    with pytest.raises(OptionError, match=message) as caught:
        ApiKeys.read(path)
    assert "sk-secret" not in str(caught.value)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(OptionError, match="cannot be read"):
            ApiKeys.read(path)


def test_all_is_denied_that_is_not_allowed(keys: Path) -> None:
    async def who(request: Request) -> Response:
        return PlainTextResponse(client_of(request))

    routes = [Route("/{path:path}", who, methods=["GET", "POST"])]
    app = guarded_app(ServerOptions(api_keys=keys), routes, lambda _: None)
    with served(app) as server:
        for path in ("/v1/models", "/models", "/metrics", "/openapi.json", "/nope", "/health/x"):
            for headers in ({}, {"Authorization": "Bearer x"}):
                refused = server.ask(path, headers=headers)
                assert (refused.status, refused.code) == (401, "invalid_api_key")
                assert refused.json["error"]["type"] == "authentication_error"
            reply = server.ask(path, headers={"Authorization": f"Bearer {SECRET}"})
            assert (reply.status, reply.body) == (200, b"camera")
        for path in (*sorted(WITHOUT_KEY), "/", "/page/app.js", "/samples/00.png"):
            assert server.ask(path).status == 200
        for path in ("/", "/page/app.js"):
            assert server.ask(path, "POST").status == 401


def test_without_keys_a_client_is_its_address() -> None:
    async def who(request: Request) -> Response:
        return PlainTextResponse(client_of(request))

    with served(guarded_app(ServerOptions(), [Route("/", who)], lambda _: None)) as server:
        assert server.ask().body == b"127.0.0.1"
