"""The command `serve` in a process of its own: how it begins, what it says, how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.journey import call, refused, without
from tests.helpers.serving import SECONDS, Address

IMAGE = Path("samples/images/03.png")
# A server that never ends what it has begun, or never has its model.
DRAINS = """
import sys, threading
from paligemma_edge.runtime.scheduling.scheduler import Scheduler
Scheduler.drain = lambda scheduler, seconds: threading.Event().wait()
from paligemma_edge.runtime.cli.start import main
sys.exit(main())
"""
LOADS = """
import sys, threading
from paligemma_edge.runtime.loading import loaded_model
loaded_model.load_model = lambda *more, **options: threading.Event().wait()
from paligemma_edge.runtime.cli.start import main
sys.exit(main())
"""


@contextlib.contextmanager
def started(*arguments: str | Path, program: str | None = None) -> Iterator[subprocess.Popen[str]]:
    how = ["-m", "paligemma_edge"] if program is None else ["-c", program]
    command = [sys.executable, *how, "serve", *map(str, arguments)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def line_with(process: subprocess.Popen[str], text: str) -> str:
    """The next line that holds a text."""
    assert process.stderr is not None
    for line in process.stderr:
        assert line.startswith(("paligemma-edge: ", "{"))
        if text in line:
            return line
    raise AssertionError(f"it ended with {process.wait()} and never said {text!r}")


def address_in(line: str) -> Address:
    found = re.search(r"http://127\.0\.0\.1:([0-9]+)", line)
    assert found is not None, line
    return Address(int(found[1]))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_it_answers_until_a_signal_and_ends_in_peace(
    shapes_bundle: Path, number: signal.Signals
) -> None:
    with started(shapes_bundle, "--port", "0", "--max-batch-size", "1") as process:
        address = address_in(line_with(process, "ready: shapes, cpu-fp32, on"))
        headers = {"Content-Type": "image/png"}
        body = IMAGE.read_bytes()
        answer = address.ask("/v1/caption", "POST", headers=headers, body=body)
        assert answer.json["text"]
        assert "POST /v1/caption 200" in line_with(process, "/v1/caption")
        assert address.ask("/").status == 200
        process.send_signal(number)
        assert "stopping" in line_with(process, "stopping")
        assert process.wait(SECONDS) == 0


def test_a_second_signal_ends_it_at_once(shapes_bundle: Path) -> None:
    with started(shapes_bundle, "--port", "0", program=DRAINS) as process:
        line_with(process, "ready:")
        process.send_signal(signal.SIGTERM)
        line_with(process, "stopping")
        process.send_signal(signal.SIGTERM)
        assert line_with(process, "interrupted") == "paligemma-edge: interrupted\n"
        assert process.wait(SECONDS) == 143


def test_a_signal_while_it_loads_ends_it_at_once(shapes_bundle: Path) -> None:
    with started(shapes_bundle, "--port", "0", program=LOADS) as process:
        address = address_in(line_with(process, "listening on"))
        assert address.ask("/livez").status == 200
        assert address.ask("/health").status == 503
        process.send_signal(signal.SIGINT)
        assert line_with(process, "interrupted") == "paligemma-edge: interrupted\n"
        assert process.wait(SECONDS) == 130


def test_lines_for_machines_are_json(shapes_bundle: Path) -> None:
    with started(shapes_bundle, "--port", "0", "--log", "json") as process:
        address = address_in(json.loads(line_with(process, "ready:"))["message"])
        reply = address.ask("/v1/no%0asuch")
        record = json.loads(line_with(process, "request_id"))
        assert record["request_id"] == reply.headers["x-request-id"]
        assert (record["status"], record["path"]) == (404, "/v1/no\\nsuch")
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        assert all(json.loads(line)["level"] == "info" for line in process.stderr)


def test_a_quiet_one_says_nothing(shapes_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with started(shapes_bundle, "--unix", path, "-q") as process:
        health = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        while b" 200 OK" not in asked(path, health):
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=SECONDS)[1] == ""
        assert process.returncode == 0
    assert not path.exists()


def asked(path: Path, data: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as one:
        try:
            one.connect(str(path))
        except OSError:  # not yet
            return b""
        one.sendall(data)
        return one.recv(65536)


def test_systemd_is_told(
    shapes_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(SECONDS)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "1000000")
        with started(shapes_bundle, "--port", "0") as process:
            told = []
            while "WATCHDOG=1" not in told:
                told.append(manager.recv(4096).decode())
            process.send_signal(signal.SIGTERM)
            while not told[-1].startswith("STOPPING=1"):
                told.append(manager.recv(4096).decode())
            assert process.wait(SECONDS) == 0
    states = [state.partition("\n")[0] for state in told]
    assert states[0] == "STATUS=opening the model"
    assert set(states[1:-1]) == {"READY=1", "WATCHDOG=1"}


def test_what_is_wrong_is_one_line(shapes_bundle: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        line = refused("serve", shapes_bundle, "--port", port, code=2)
        assert f"127.0.0.1 port {port}: another program listens there" in line
    serve = ("serve", shapes_bundle, "--port", "0")
    assert "give --api-keys FILE" in refused(*serve, "--host", "0.0.0.0", code=2)
    (tmp_path / "keys").write_text("my secret key\n")
    line = refused(*serve, "--api-keys", tmp_path / "keys", code=2)
    assert "line 1 is no name:sha256" in line
    assert "secret" not in line
    assert "go together" in refused(*serve, "--tls-cert", "a.pem", code=2)
    assert "--max-request is 'much'" in refused(*serve, "--max-request", "much", code=2)
    assert "--max-batch-size is 0" in refused(*serve, "--max-batch-size", "0", code=2)
    assert "--max-queue is 0" in refused(*serve, "--max-queue", "0", code=2)


def test_a_bundle_that_is_gone_ends_it(tmp_path: Path) -> None:
    done = call("serve", tmp_path / "no.bundle", "--port", "0")
    assert done.returncode == 1
    assert "no.bundle" in done.stderr.splitlines()[-1]


def test_without_the_extra_it_says_what_to_install(shapes_bundle: Path) -> None:
    line = refused("serve", shapes_bundle, program=without("starlette", "uvicorn", "h11"))
    assert "pip install 'paligemma-edge[serve]'" in line


def test_help_needs_no_extra() -> None:
    done = call("serve", "--help", program=without("starlette", "uvicorn", "msgspec", "numpy"))
    assert done.returncode == 0
    for head in ("address:", "who may ask:", "answers:", "limits:", "model and device:"):
        assert head in done.stdout
    assert os.linesep in done.stdout
