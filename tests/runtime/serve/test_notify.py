"""What systemd is told."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from paligemma_edge.runtime.serve.notify import Notifier


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
        one.bind(str(tmp_path / "notify"))
        one.setblocking(False)
        yield one


def told(manager: socket.socket) -> list[str]:
    found = []
    while True:
        try:
            found.append(manager.recv(4096).decode())
        except BlockingIOError:
            return found


def test_states_are_told(manager: socket.socket) -> None:
    notifier = Notifier.of({"NOTIFY_SOCKET": manager.getsockname()})
    notifier.status("opening")
    notifier.ready("answering")
    notifier.beat()  # without a watchdog
    notifier.stopping("ending")
    assert told(manager) == [
        "STATUS=opening",
        "READY=1\nSTATUS=answering",
        "STOPPING=1\nSTATUS=ending",
    ]


def test_abstract_addresses_are_understood() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0paligemma-{os.getpid()}")
        manager.setblocking(False)
        Notifier.of({"NOTIFY_SOCKET": f"@paligemma-{os.getpid()}"}).ready("x")
        assert told(manager) == ["READY=1\nSTATUS=x"]


def test_the_engine_beats_as_often_as_the_watchdog_needs(manager: socket.socket) -> None:
    environment = {"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_PID": str(os.getpid())}
    quick = Notifier.of({**environment, "WATCHDOG_USEC": "1"})
    slow = Notifier.of({**environment, "WATCHDOG_USEC": "3600000000"})
    for _ in range(100):
        quick.beat()
    assert len(told(manager)) > 1
    for _ in range(100):
        slow.beat()
    assert told(manager) == ["WATCHDOG=1"]


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"NOTIFY_SOCKET": ""},
        {"NOTIFY_SOCKET": "relative"},
        {"NOTIFY_SOCKET": "/nowhere/notify"},
        {"NOTIFY_SOCKET": "/" + "x" * 300},
        {"NOTIFY_SOCKET": "/nowhere/notify", "WATCHDOG_USEC": "soon"},
        {"NOTIFY_SOCKET": "/nowhere/notify", "WATCHDOG_USEC": "9", "WATCHDOG_PID": "1"},
    ],
)
def test_without_a_manager_nothing_is_sent_and_nothing_fails(environment: dict[str, str]) -> None:
    notifier = Notifier.of(environment)
    notifier.ready("x")
    notifier.beat()
    notifier.stopping("x")
    assert notifier.watchdog_seconds is None
