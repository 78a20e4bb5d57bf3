"""Servers on free ports of this machine, in threads of this process, and clients of any manners."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import io
import json
import logging
import queue
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.types import ASGIApp

from paligemma_edge.runtime.loading.loaded_model import LoadedModel, load_model
from paligemma_edge.runtime.scheduling.scheduler import Scheduler
from paligemma_edge.runtime.serve.options import ServerOptions
from paligemma_edge.runtime.serve.server import Server, http_server, model_id_of

SECONDS = 60  # until a test gives up waiting, on a machine that is busy


@dataclass(frozen=True)
class Reply:
    """What a server answered."""

    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes

    @property
    def json(self) -> Any:  # noqa: ANN401 - of any kind
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """Of an error, which has our form."""
        error = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"].isprintable()
        assert self.headers["x-request-id"].startswith("req_")
        return str(error["code"])


@dataclass(frozen=True)
class Address:
    """A server on this machine."""

    port: int

    def ask(
        self,
        path: str = "/",
        method: str = "GET",
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> Reply:
        """Make one request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        with contextlib.closing(connection):
            connection.request(method, path, body, dict(headers or {}))
            return reply_of(connection.getresponse())

    def connect(self, receive_buffer: int | None = None) -> socket.socket:
        """A connection for bytes of any kind."""
        one = socket.socket()
        if receive_buffer is not None:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        one.settimeout(SECONDS)
        one.connect(("127.0.0.1", self.port))
        return one

    def raw(self, data: bytes) -> bytes:
        """Send bytes, and read until the server closes."""
        with self.connect() as one:
            with contextlib.suppress(ConnectionError):
                one.sendall(data)
            return read_all(one)


def reply_of(response: http.client.HTTPResponse) -> Reply:
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Reply(response.status, headers, response.read())


def read_all(one: socket.socket) -> bytes:
    """What comes until the other side closes, in whichever way."""
    pieces = []
    with contextlib.suppress(ConnectionError):
        while piece := one.recv(65536):
            pieces.append(piece)
    return b"".join(pieces)


def replies(data: bytes) -> list[Reply]:
    """The answers that a connection gave one after the other."""
    stream, found = _Stream(data), []
    while stream.left:
        response = http.client.HTTPResponse(stream)  # type: ignore[arg-type]
        response.begin()
        found.append(reply_of(response))
    return found


class _Stream:
    """Bytes in the place of a socket that http.client reads."""

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)
        self._file.close = lambda: None  # type: ignore[method-assign]
        self._size = len(data)

    @property
    def left(self) -> int:
        return self._size - self._file.tell()

    def makefile(self, _mode: str) -> io.BytesIO:
        return self._file


def make_certificate(cert: Path, key: Path) -> None:
    """One of its own for this machine."""
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run([*command, "-keyout", key, "-out", cert], check=True, capture_output=True)


class Log(logging.Handler):
    """What the package logs, which may come after the client has its answer."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self._more = threading.Condition()

    def emit(self, record: logging.LogRecord) -> None:
        with self._more:
            self.records.append(record)
            self._more.notify_all()

    def requests(self, count: int = 1) -> list[dict[str, Any]]:
        """The fields of the lines about so many requests, once they are there."""
        with self._more:
            assert self._more.wait_for(lambda: len(self._requests()) >= count, SECONDS)
            return self._requests()

    def wait_for(self, text: str) -> str:
        """The first message that holds a text, once it is there."""
        with self._more:
            assert self._more.wait_for(lambda: self._first(text) is not None, SECONDS), self.text
            found = self._first(text)
            assert found is not None
            return found

    def _first(self, text: str) -> str | None:
        messages = (record.getMessage() for record in self.records)
        return next((message for message in messages if text in message), None)

    @property
    def text(self) -> str:
        """All of it, tracebacks too."""
        return "\n".join(map(logging.Formatter().format, self.records))

    def _requests(self) -> list[dict[str, Any]]:
        return [record.fields for record in self.records if hasattr(record, "fields")]


@contextlib.contextmanager
def logged() -> Iterator[Log]:
    """All that the package logs meanwhile."""
    log, logger = Log(), logging.getLogger("paligemma_edge")
    level = logger.level
    logger.addHandler(log)
    logger.setLevel(logging.DEBUG)
    try:
        yield log
    finally:
        logger.removeHandler(log)
        logger.setLevel(level)


@contextlib.contextmanager
def served(app: ASGIApp, **given: Any) -> Iterator[Address]:  # noqa: ANN401 - options
    """An application behind our protocol, with the limits of these options."""
    server = http_server(app, ServerOptions(**given))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
        thread.start()
        try:
            yield Address(port)
        finally:
            server.should_exit = True
            thread.join(SECONDS)
            assert not thread.is_alive()


@dataclass(frozen=True)
class Running:
    """A whole server."""

    address: Address
    server: Server
    thread: threading.Thread
    told: queue.SimpleQueue[list[str] | BaseException]

    def failure(self) -> BaseException:
        """Why it ended by itself."""
        failure = self.told.get(timeout=SECONDS)
        assert isinstance(failure, BaseException)
        return failure

    @property
    def app(self) -> Starlette:
        app = self.server._entrance.app
        assert isinstance(app, Starlette)
        return app

    @property
    def scheduler(self) -> Scheduler:
        scheduler: Scheduler = self.app.state.server.answering.scheduler
        return scheduler


@contextlib.contextmanager
def running_server(
    bundle: Path,
    load: Callable[[], LoadedModel] | None = None,
    **given: Any,  # noqa: ANN401
) -> Iterator[Running]:
    """A server of a bundle, or of what `load` opens."""
    options = ServerOptions(**{"port": 0, "slots": 2, **given})
    told: queue.SimpleQueue[list[str] | BaseException] = queue.SimpleQueue()
    server = Server(
        load or (lambda: load_model(bundle, "cpu", max_batch_size=options.slots, threads=1)),
        model_id_of(str(bundle)),
        options,
        on_ready=told.put,
    )

    def run() -> None:
        try:
            server.run()
        except BaseException as error:
            told.put(error)

    thread = threading.Thread(target=run, name="server")
    thread.start()
    try:
        where = told.get(timeout=SECONDS)
        if isinstance(where, BaseException):
            raise where
        port = int(where[0].rpartition(":")[2]) if where[0].startswith("http") else 0
        yield Running(Address(port), server, thread, told)
    finally:
        server.stop()
        thread.join(SECONDS)
        assert not thread.is_alive()
