"""Damaged requests, and clients without manners, against a server on a free port."""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import re
import socket
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from paligemma_edge.export.exporter import export
from tests.damage.attempt import Damaged, Wrong
from tests.damage.bundles import CHECKPOINT, IMAGE
from tests.damage.mutate import mutated_bytes, mutated_json
from tests.helpers.serving import Log, read_all, running_server

_STATUS = re.compile(rb"HTTP/1\.1 ([0-9]{3}) ")
_OF_LOAD = (503, 504)  # what a server may say that is no fault of its own
_HASTE: Mapping[str, Any] = {
    "receive_seconds": 0.2,
    "keep_alive_seconds": 0.05,
    "stall_seconds": 0.5,
    "timeout": 5.0,
    "slots": 2,
    "max_waiting": 4,
    "max_body": 1 << 20,
}
_MANNERS = ("whole", "whole", "whole", "pieces", "close", "reset", "end", "unread")
_REQUEST = b"%s HTTP/1.1\r\nHost: localhost\r\n"


@dataclass(frozen=True)
class _Seed:
    """A request that is right; what is in `json` is its body."""

    line: bytes
    headers: bytes = b""
    body: bytes = b""
    json: Any = None

    def whole(self, body: bytes | None = None) -> bytes:
        """Its bytes, with another body."""
        body = self.body if body is None else body
        length = b"Content-Length: %d\r\n" % len(body) if body else b""
        return _REQUEST % self.line + self.headers + length + b"\r\n" + body


class Requests:
    """A server in this process, which every attempt has to leave as it was."""

    def __init__(self, prepared: Path, own: Path) -> None:
        self._seeds = list(seeds(IMAGE.read_bytes()))
        self._log = Log()
        logger = logging.getLogger("paligemma_edge")
        logger.addHandler(self._log)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        self._server = running_server(prepared / "shapes.bundle", **_HASTE)
        self._running = self._server.__enter__()  # until the process ends

    @staticmethod
    def prepare(folder: Path) -> None:
        """Write the bundle that is served."""
        masks = CHECKPOINT / "vae-oid.npz"
        export(CHECKPOINT, folder / "shapes.bundle", mask_decoder=masks)

    def damaged(self, random: Random) -> Damaged:
        """One of the requests, changed in one way or not at all; its sender's manners too."""
        seed, way = random.choice(self._seeds), random.random()
        if seed.json is not None and way < 0.6:
            data = seed.whole(mutated_json(seed.json, random))
        elif seed.body and way < 0.75:
            data = seed.whole(mutated_bytes(seed.body, random))
        else:
            data = seed.whole() if way < 0.85 else mutated_bytes(seed.whole(), random)
        while random.random() < 0.15:  # several at once
            data += random.choice(self._seeds).whole()
        return Damaged("request", data, random.choice(_MANNERS))

    def use(self, damaged: Damaged) -> str:
        """Send it, and see that nothing has come of it but an answer."""
        self._log.records.clear()
        with self._running.address.connect() as one:
            answer = _sent(one, damaged)
        ended = judge(answer)
        scheduler = self._running.scheduler
        while scheduler.running or scheduler.waiting:  # a slot that is stuck is a hang
            pass
        health = self._running.address.ask("/health")
        if health.status != 200:
            raise Wrong(f"afterwards /health is {health.status}: {health.body!r}")
        for record in self._log.records:
            if record.levelno >= logging.WARNING or record.exc_info:
                raise Wrong(f"it was logged: {self._log.text}")
        return ended


KIND = Requests


def judge(answer: bytes) -> str:
    """The first status, or that there was none; Wrong where one says that the server failed."""
    statuses = [int(found) for found in _STATUS.findall(answer)]
    for status in statuses:
        if status >= 500 and status not in _OF_LOAD:
            raise Wrong(f"status {status}: {answer[:2000]!r}")
    if b"Traceback" in answer:
        raise Wrong(f"a traceback: {answer[:2000]!r}")
    if answer and not statuses:
        raise Wrong(f"no HTTP: {answer[:2000]!r}")
    return str(statuses[0]) if statuses else "no answer"


def _sent(one: socket.socket, damaged: Damaged) -> bytes:
    """What comes back from a server that was sent something in this manner."""
    data, manner = damaged.data, damaged.about
    if manner == "unread":
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    with contextlib.suppress(ConnectionError):
        if manner == "pieces":
            for start in range(0, len(data), max(1, len(data) // 7)):
                one.sendall(data[start : start + max(1, len(data) // 7)])
        elif manner in ("close", "reset"):
            one.sendall(data[: len(data) * 2 // 3] if len(data) % 2 else data)
        else:
            one.sendall(data)
        if manner == "end":
            one.shutdown(socket.SHUT_WR)
    if manner == "reset":
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return b"" if manner in ("close", "reset", "unread") else read_all(one)


def seeds(image: bytes) -> Iterator[_Seed]:
    """A request of each kind."""
    paths = ("/health", "/v1/models", "/v1/info", "/metrics", "/openapi.json", "/", "/v1/nope")
    for path in paths:
        yield _Seed(b"GET " + path.encode())
    yield _Seed(b"OPTIONS /v1/detect", b"Origin: http://evil.com\r\n")
    raw = b"Content-Type: image/png\r\n"
    for line in (b"caption?language=en", b"detect?labels=star&labels=heart", b"ocr?stream=true"):
        yield _Seed(b"POST /v1/" + line, raw + b"Authorization: Bearer x\r\n", image)
    encoded = base64.b64encode(image).decode()
    yield from _json_seeds(encoded)
    yield _chunked(b"POST /v1/caption", raw, image)
    yield _multipart(image)


def _json_seeds(image: str) -> Iterator[_Seed]:
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}}
    chat = {
        "model": "shapes",
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": [part, {"type": "text", "text": "caption en"}]},
        ],
        "max_tokens": 4,
        "temperature": 0.5,
        "seed": 3,
        "stop": ["a"],
        "logprobs": True,
        "top_logprobs": 2,
        "stream": False,
    }
    bodies: dict[str, Any] = {
        "chat/completions": chat,
        "ask": {"image": image, "question": "what is this?", "max_new_tokens": 4},
        "detect": {"image": image, "labels": ["star"], "format": "inference", "timeout": 3},
        "segment": {"image": image, "labels": ["star"], "masks": "png", "min_confidence": 0.1},
        "classify": {"image": image, "prompt": "answer en", "choices": ["a", "b"]},
        "generate": {"image": {"id": "img_0"}, "prompts": ["caption en", "ocr"], "top_k": 3},
    }
    streamed = {"chat/completions": {**chat, "stream": True}, "generate": {**bodies["generate"]}}
    streamed["generate"] |= {"image": image, "stream": True, "max_new_tokens": 4}
    for name, body in (*bodies.items(), *streamed.items()):
        headers = b"Content-Type: application/json\r\n"
        line = b"POST /v1/" + name.encode()
        yield _Seed(line, headers, json.dumps(body).encode(), body)


def _chunked(line: bytes, headers: bytes, body: bytes) -> _Seed:
    chunks = b"".join(
        b"%x;a=b\r\n%s\r\n" % (len(body[n : n + 100]), body[n : n + 100])
        for n in range(0, len(body), 100)
    )
    end = b"0\r\nTrailer: x\r\n\r\n"
    return _Seed(line, headers + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + end)


def _multipart(image: bytes) -> _Seed:
    part = b'--b\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
    body = part % (b"image", b'; filename="a.png"\r\nContent-Type: image/png', image)
    body += part % (b"labels", b"", b"star") + b"--b--\r\n"
    return _Seed(b"POST /v1/detect", b"Content-Type: multipart/form-data; boundary=b\r\n", body)
