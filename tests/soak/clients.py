"""Clients of a server that is soaked: patient ones, hasty ones, and those that crash."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from tests.helpers.serving import Address, Reply
from tests.soak.figures import ALLOWED, Figures

_PAUSE = 0.02  # seconds after a refusal, for a client that heeds it a little
_PROMPTS = ("caption en", "detect star", "ocr", "answer en what is this?", "segment heart")


@dataclass
class Clients:
    """Asks from many threads until it is told to end."""

    address: Address
    images: Sequence[bytes]
    models: Sequence[str]
    figures: Figures
    seed: int
    ended: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextlib.contextmanager
    def asking(self, count: int) -> Iterator[None]:
        """So many at a time, until the block ends."""
        threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(count)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.ended.set()
            for thread in threads:
                thread.join()

    def _ask(self, number: int) -> None:
        random = Random(f"{self.seed} {number}")
        actions: list[Callable[[Random], Reply | None]] = [
            *(self._typed, self._typed, self._typed, self._chat, self._chat, self._several),
            *(self._vanish, self._vanish, self._hurry, self._look),
        ]
        while not self.ended.is_set():
            try:
                reply = random.choice(actions)(random)
            except Exception as error:  # a client must never see one
                self._note(f"a client failed: {error!r}")
                return
            self._count(reply)
            if reply is not None and reply.status != 200:
                self.ended.wait(_PAUSE)

    def _count(self, reply: Reply | None) -> None:
        with self._lock:
            if reply is None:
                self.figures.left += 1
            else:
                self.figures.statuses[reply.status] += 1
        if reply is not None and reply.status not in ALLOWED:
            self._note(f"status {reply.status}: {reply.body[:300]!r}")

    def _note(self, error: str) -> None:
        with self._lock:
            self.figures.errors.append(error)

    def _typed(self, random: Random) -> Reply:
        stream = random.choice(("", "&stream=true"))
        model = random.choice(self.models)
        path = f"/v1/caption?language=en{stream}&model={model}&max_new_tokens=12"
        headers = {"Content-Type": "image/png"}
        return self._post(path, headers, random.choice(self.images))

    def _chat(self, random: Random) -> Reply:
        image = base64.b64encode(random.choice(self.images)).decode()
        content = [
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}},
            {"type": "text", "text": random.choice(_PROMPTS)},
        ]
        body = {
            "model": random.choice(self.models),
            "messages": [{"role": "user", "content": content}],
            "max_tokens": random.choice((1, 8, 24)),
            "stream": random.random() < 0.5,
        }
        return self._json("/v1/chat/completions", body)

    def _several(self, random: Random) -> Reply:
        image = base64.b64encode(random.choice(self.images)).decode()
        prompts = random.sample(_PROMPTS, 2)
        return self._json("/v1/generate", {"image": image, "prompts": prompts, "max_new_tokens": 6})

    def _hurry(self, random: Random) -> Reply:
        """Ask with hardly any time for the answer."""
        headers = {"Content-Type": "image/png"}
        path = f"/v1/ocr?timeout={random.choice((0.001, 0.05))}"
        return self._post(path, headers, random.choice(self.images))

    def _look(self, random: Random) -> Reply:
        return self.address.ask(random.choice(("/health", "/v1/models", "/v1/info", "/metrics")))

    def _vanish(self, random: Random) -> None:
        """Crash amid the request, before its answer, or while it is read."""
        image, stream = random.choice(self.images), random.choice(("", "?stream=true"))
        head = (
            f"POST /v1/caption{stream} HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
        )
        data = head.encode() + b"Content-Length: %d\r\n\r\n%s" % (len(image), image)
        with self.address.connect() as one, contextlib.suppress(ConnectionError):
            one.sendall(data[: random.randrange(len(data))] if random.random() < 0.3 else data)
            if random.random() < 0.4:
                one.settimeout(0.2)
                with contextlib.suppress(TimeoutError):
                    one.recv(random.choice((1, 500)))
            if random.random() < 0.5:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _json(self, path: str, body: dict[str, Any]) -> Reply:
        return self._post(path, {"Content-Type": "application/json"}, json.dumps(body).encode())

    def _post(self, path: str, headers: dict[str, str], body: bytes) -> Reply:
        return self.address.ask(path, "POST", headers=headers, body=body)


def sample_images(folder: Path, count: int) -> list[bytes]:
    """Some of the sample images, as files."""
    return [path.read_bytes() for path in sorted(folder.glob("[0-9]*.png"))[:count]]
