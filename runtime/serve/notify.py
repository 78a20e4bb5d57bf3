"""What systemd is told of the server: that it is ready, that it stops, that its engine lives.

The protocol is one datagram a message (https://www.freedesktop.org/software/systemd/man/sd_notify).
Without systemd nothing is sent.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

_BEATS = 4  # in the time after which systemd takes the server for dead
_PATIENCE = 5.0  # seconds for a manager that is busy, where a message must not get lost


@dataclass
class Notifier:
    """Sends messages to the service manager, if there is one; any thread may call it."""

    address: str | None = None
    watchdog_seconds: float | None = None
    _last_beat: float = field(default=float("-inf"), repr=False)

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Notifier:
        """By the environment of a service; one that systemd did not start has none."""
        address = environment.get("NOTIFY_SOCKET", "")
        if not address.startswith(("/", "@")):
            return cls()
        micros, owner = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID")
        ours = owner in (None, str(os.getpid())) and micros.isdecimal()
        return cls(address, int(micros) / 1e6 if ours else None)

    def ready(self, status: str) -> None:
        """The server takes questions."""
        self._send(f"READY=1\nSTATUS={status}")

    def stopping(self, status: str) -> None:
        """The server takes no more questions."""
        self._send(f"STOPPING=1\nSTATUS={status}")

    def status(self, status: str) -> None:
        """What the server is doing, in a line."""
        self._send(f"STATUS={status}")

    def beat(self) -> None:
        """The engine has made a turn; sent no more often than the watchdog needs."""
        if self.watchdog_seconds is None:
            return
        now = time.monotonic()
        if now - self._last_beat >= self.watchdog_seconds / _BEATS:
            self._last_beat = now
            self._send("WATCHDOG=1", patience=0)  # the engine waits for nobody

    def _send(self, message: str, patience: float = _PATIENCE) -> None:
        if self.address is None:
            return
        address = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        # A manager that does not listen changes nothing of what the server does.
        with contextlib.suppress(OSError), _datagrams() as sender:
            sender.settimeout(patience)
            sender.sendto(message.encode(), address)


def _datagrams() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
