"""Several processes that make attempts of one kind; one that dies or hangs is replaced."""

from __future__ import annotations

import contextlib
import importlib
import json
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import IO

ROOT = Path(__file__).parents[2]
_GRACE = 30  # seconds beyond those after which a process ends itself
_READY = 600  # seconds to import and to open a model beside other work


@dataclass(frozen=True)
class Outcome:
    """How one attempt ended."""

    number: int
    ended: str  # in a word, such as "read" or "ImageError"
    problem: str | None  # what was wrong with that
    given: bytes | None = None  # the input of one that fell


@dataclass(frozen=True)
class Trials:
    """Which attempts: of a module of this package, by a seed, with limits for each."""

    module: str
    seed: int
    seconds: float
    memory: int  # bytes
    jobs: int

    def outcomes(self, numbers: range | list[int]) -> Iterator[Outcome]:
        """Make the attempts of these numbers, as they end."""
        with tempfile.TemporaryDirectory(prefix="damage-") as folder:
            prepared = Path(folder) / "prepared"
            prepared.mkdir()
            importlib.import_module(self.module).KIND.prepare(prepared)
            workers: SimpleQueue[_Worker] = SimpleQueue()
            jobs = min(self.jobs, len(numbers))
            for job in range(jobs):
                workers.put(_Worker(self, prepared, Path(folder) / f"own{job}"))

            def attempt(number: int) -> Outcome:
                worker = workers.get()
                try:
                    return worker.attempt(number)
                finally:
                    workers.put(worker)

            try:
                yield from in_threads(attempt, numbers, jobs)
            finally:
                for _ in range(jobs):
                    workers.get().close()


def in_threads(
    attempt: Callable[[int], Outcome], numbers: range | list[int], jobs: int
) -> Iterator[Outcome]:
    """Make attempts at the same time, and give each as it ends."""
    with ThreadPoolExecutor(max(1, jobs)) as threads:
        futures = [threads.submit(attempt, number) for number in numbers]
        try:
            yield from (future.result() for future in as_completed(futures))
        finally:
            threads.shutdown(cancel_futures=True)


class _Worker:
    """A process, and the next one where it ends."""

    def __init__(self, trials: Trials, prepared: Path, own: Path) -> None:
        self._trials, self._prepared, self._own = trials, prepared, own
        self._process: subprocess.Popen[str] | None = None

    def attempt(self, number: int) -> Outcome:
        """Make an attempt; one that does not end in time gets a second, in a new process.

        Beside other work a machine may stand still for seconds: a hang is one again.
        """
        outcome = self._attempt(number)
        return self._attempt(number) if outcome.ended == "no end" else outcome

    def _attempt(self, number: int) -> Outcome:
        process = self._process = self._process or self._started()
        assert process.stdin
        assert process.stdout
        with contextlib.suppress(BrokenPipeError):  # it ended by itself, and says why below
            process.stdin.write(f"{number}\n")
            process.stdin.flush()
        if line := _line(process.stdout, self._trials.seconds + _GRACE):
            ended, problem = json.loads(line)
        else:
            ended, problem = self._buried()
        given = None if problem is None else self._own.with_suffix(".input").read_bytes()
        return Outcome(number, ended, problem, given)

    def _buried(self) -> tuple[str, str]:
        """What ended a process that gave no answer."""
        self.close()
        written = self._own.with_suffix(".txt").read_text(errors="backslashreplace")
        if "Timeout (" in written or not written:
            return "no end", f"no end after {self._trials.seconds:g} s\n{written}"
        return "crash", written

    def _started(self) -> subprocess.Popen[str]:
        shutil.rmtree(self._own, ignore_errors=True)
        self._own.mkdir()
        trials = self._trials
        limits = (trials.seed, trials.seconds, trials.memory)
        given = map(str, (trials.module, self._prepared, self._own, *limits))
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.damage.worker", *given],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout
        if _line(process.stdout, _READY) != "ready\n":
            process.kill()
            process.wait()
            problem = self._own.with_suffix(".txt").read_text(errors="backslashreplace")
            raise RuntimeError(f"no attempt can be made: {problem}")
        return process

    def close(self) -> None:
        """End the process."""
        if (process := self._process) is not None:
            process.kill()
            with process:  # waits, and closes its pipes
                self._process = None


def _line(stream: IO[str], seconds: float) -> str:
    """The next line; empty where the process has ended, or says nothing for too long."""
    ready, _, _ = select.select([stream], [], [], seconds)
    return stream.readline() if ready else ""
