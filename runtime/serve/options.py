"""How a server listens, whom it lets in, and how much of anything it takes.

Knows every limit, and no limit is without a value: a client may only ask for less.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from paligemma_edge.runtime.errors import OptionError
from paligemma_edge.runtime.validation import check_count, is_number

DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 8000
_HOST_NAME = re.compile(r"(\*\.)?[A-Za-z0-9_-][A-Za-z0-9._-]{0,252}", re.ASCII)
_MEBIBYTE = 1 << 20

LogFormat = Literal["text", "json"]


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """Options of a server; OptionError where one has a value that is not accepted.

    Args:
        host: name or address to listen on.
        port: of TCP; 0 lets the system choose.
        unix: path of a unix socket to listen on in place of host and port.
        tls_cert: file of certificates, the server's own first; with `tls_key` for HTTPS.
        tls_key: file of its private key.
        api_keys: file with a line `name:sha256` for each key that is let in.
        no_auth: let anybody in who reaches it, also from other machines.
        allowed_hosts: names that clients may call the server by, besides addresses, `localhost` and
            `*.local`; `*` in front of one stands for any name below it.
        page: serve the page for people.
        default_task: task word that goes before chat prompts without one, such as "answer en".
        strict_chat: refuse chats with text that is not read, such as a system message.
        log_format: "text" for people, "json" for one JSON object a line.
        slots: answers at a time.
        max_length: tokens of images, prompt and answer together; default: what the model holds.
        max_waiting: questions that wait at most; more are refused.
        max_waiting_bytes: of their images, encoded and as pixels.
        max_waiting_per_client: questions of one client that wait at most.
        steps_between_prefills: steps of running answers before the next question is read.
        timeout: seconds from a question's arrival to its answer at most.
        drain: seconds that running and waiting answers have when the server is stopped.
        max_body: bytes of a request.
        max_bodies: bytes of all requests that are being received.
        max_images: images of one question.
        max_prompts: prompts about one image in one request.
        max_pixels: of an image, width times height.
        max_connections: that are open at a time.
        receive_seconds: in which a whole request has to arrive.
        keep_alive_seconds: after which a connection without a request is closed.
        stall_seconds: after which a client that hardly reads its answer is cut off.
    """

    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT
    unix: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    api_keys: Path | None = None
    no_auth: bool = False
    allowed_hosts: tuple[str, ...] = ()
    page: bool = True
    default_task: str | None = None
    strict_chat: bool = False
    log_format: LogFormat = "text"
    slots: int = 4
    max_length: int | None = None
    max_waiting: int = 64
    max_waiting_bytes: int = 256 * _MEBIBYTE
    max_waiting_per_client: int = 32
    steps_between_prefills: int = 4
    timeout: float = 120.0
    drain: float = 30.0
    max_body: int = 20 * _MEBIBYTE
    max_bodies: int = 160 * _MEBIBYTE
    max_images: int = 4
    max_prompts: int = 16
    max_pixels: int = 40_000_000
    max_connections: int = 512
    receive_seconds: float = 30.0
    keep_alive_seconds: float = 30.0
    stall_seconds: float = 30.0

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise OptionError(f"port is {self.port}, wanted 0 to 65535")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise OptionError("tls_cert and tls_key go together; give both or none")
        if self.no_auth and self.api_keys is not None:
            raise OptionError("no_auth lets anybody in, api_keys only some; give one of them")
        if self.log_format not in ("text", "json"):
            raise OptionError(f"log_format is {self.log_format!r}, wanted 'text' or 'json'")
        for name in self.allowed_hosts:
            _check_host_name(name)
        for name in _COUNTS:
            check_count(name, getattr(self, name))
        for name in _SECONDS:
            _check_seconds(name, getattr(self, name))
        if self.max_body > self.max_bodies:
            raise OptionError(
                f"max_body is {self.max_body} and max_bodies {self.max_bodies}, wanted it at least "
                "as large"
            )


_COUNTS = (
    *("slots", "max_waiting", "max_waiting_bytes", "max_waiting_per_client"),
    *("steps_between_prefills", "max_body", "max_bodies", "max_images", "max_prompts"),
    *("max_pixels", "max_connections"),
)
_SECONDS = ("timeout", "drain", "receive_seconds", "keep_alive_seconds", "stall_seconds")


def _check_seconds(name: str, value: object) -> None:
    if not is_number(value) or not 0 < value < math.inf:
        raise OptionError(f"{name} is {value!r}, wanted seconds above 0")


def _check_host_name(name: str) -> None:
    """Addresses need no permission."""
    if not _HOST_NAME.fullmatch(name):
        raise OptionError(
            f"allowed host is {name!r}, wanted a name without port, such as box.example.com or "
            "*.example.com"
        )
