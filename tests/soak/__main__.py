"""Asks a server far more than it can answer, for as long as is wanted, with clients that crash.

    python -m tests.soak --seconds 300

The command `serve` runs in a process of its own. Its memory must not grow by more than 1 MB for
each 1,000 requests, its files and slots must be given back, what it answers are 200, 429, 503 and
504, no error is in its log, and in the end it stops in peace.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from tests.damage.bundles import IMAGES, ROOT, write_adapter, write_bundle
from tests.helpers.serving import SECONDS, Address
from tests.soak.clients import Clients, sample_images
from tests.soak.figures import Figures, Sample

SLOTS, QUEUE, OF_CLIENT = 2, 8, 6
CLIENTS = 10 * SLOTS
_EVERY = 1.0  # seconds between samples


def main(argv: Sequence[str] | None = None) -> int:
    """Soak a server; 0 where all holds, else 1."""
    options = parser().parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        bundle = Path(folder, "shapes.bundle")
        write_bundle(bundle, write_adapter(Path(folder, "lora")))
        figures = Figures(SLOTS, QUEUE)
        with serving(bundle, figures) as server:
            before = server.settled(0)
            soak(server, figures, options)
            after = server.settled(figures.requests)
    print(*figures.lines(before, after), sep="\n")
    problems = list(figures.problems(before, after))
    print(*(f"WRONG: {problem}" for problem in problems), sep="\n", end="\n" if problems else "")
    return int(bool(problems))


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seconds", type=float, default=300.0, help="how long; default: 300")
    parser.add_argument("--requests", type=int, help="so many at least, however long that takes")
    parser.add_argument("--clients", type=int, default=CLIENTS, help=f"default: {CLIENTS}")
    parser.add_argument("--seed", type=int, default=0, help="decides what clients ask")
    return parser


def soak(server: Served, figures: Figures, options: argparse.Namespace) -> None:
    """Let the clients ask, and look at the server all the while."""
    clients = Clients(
        server.address, sample_images(IMAGES, 8), ("shapes", "old"), figures, options.seed
    )
    wanted: int | None = options.requests
    end: float = time.monotonic() + options.seconds

    def goes_on() -> bool:
        return time.monotonic() < end if wanted is None else figures.requests < wanted

    with clients.asking(options.clients):
        while goes_on() and server.lives:
            figures.samples.append(server.sample(figures.requests))
            clients.ended.wait(_EVERY)


@dataclass
class Served:
    """The server's process."""

    process: subprocess.Popen[str]
    address: Address = field(init=False)

    @property
    def lives(self) -> bool:
        """Whether it has not ended by itself."""
        return self.process.poll() is None

    def sample(self, requests: int) -> Sample:
        """What it says of itself now."""
        return Sample.of(requests, self.address.ask("/metrics").body.decode())

    def settled(self, requests: int) -> Sample:
        """What it says once nothing runs and nobody is connected any more, or after a while."""
        deadline = time.monotonic() + SECONDS
        sample = self.sample(requests)
        while (sample.running or sample.waiting) and time.monotonic() < deadline:
            sample = self.sample(requests)
        return sample


@contextlib.contextmanager
def serving(bundle: Path, figures: Figures) -> Iterator[Served]:
    """A server of a bundle; in the end it must stop in peace."""
    command = [sys.executable, "-m", "paligemma_edge", "serve", str(bundle), "--port", "0"]
    command += ["--variant", "cpu-fp32", "--threads", "1", "--log", "json"]
    command += ["--max-batch-size", str(SLOTS), "--max-queue", str(QUEUE)]
    command += ["--max-queue-per-client", str(OF_CLIENT)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        server = Served(process)
        log = _Log(process.stderr, figures)
        log.start()
        try:
            server.address = Address(log.port())
            yield server
            process.send_signal(signal.SIGTERM)
            if (code := process.wait(SECONDS)) != 0:
                figures.errors.append(f"the server ended with {code}")
        finally:
            process.kill()
            log.join()


class _Log(threading.Thread):
    """Reads the server's log to its end, and notes what is worse than news."""

    def __init__(self, lines: IO[str], figures: Figures) -> None:
        super().__init__(name="log")
        self._lines, self._figures = lines, figures
        self._ready = threading.Event()
        self._port = 0

    def port(self) -> int:
        """Where the server answers, once it does."""
        assert self._ready.wait(SECONDS), self._figures.errors
        return self._port

    def run(self) -> None:
        for line in self._lines:
            self._read(line)

    def _read(self, line: str) -> None:
        try:
            record = json.loads(line)
        except ValueError:
            record = {"level": "error", "message": line}
        if record["level"] not in ("debug", "info") or "traceback" in record:
            self._figures.errors.append(f"the log has: {line[:2000].strip()}")
        message = record.get("message", "")
        if message.startswith("ready:") and (found := re.search(r":([0-9]+)$", message)):
            self._port = int(found[1])
            self._ready.set()


if __name__ == "__main__":
    sys.exit(main())
