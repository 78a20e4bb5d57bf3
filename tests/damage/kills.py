"""Commands that are killed at any moment of their work, and what is left of it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from time import monotonic

from paligemma_edge.runtime.bundle.bundle import Bundle
from paligemma_edge.runtime.errors import PaliGemmaError
from tests.damage.bundles import (
    CHECKPOINT,
    IMAGE,
    IMAGES,
    ROOT,
    VARIANT,
    command,
    write_adapter,
    write_bundle,
)
from tests.damage.pool import Outcome, in_threads

_LIMIT = 600  # seconds for a command beside other work
_BUNDLE, _ADAPTER, _OUT, _NEW = "shapes.bundle", "lora", "answers.jsonl", "new.bundle"
_ROUNDED, _LOSSLESS = ("--no-calibration",), ("--variant", "cpu-fp32")
_QUICK = ("--device", "cpu", *_LOSSLESS, "--threads", "1")
_ASK = ("run", _BUNDLE, "caption en", str(IMAGE), *_QUICK, "--quiet")

# In a folder that holds the bundle and the adapter.
COMMANDS: dict[str, Sequence[str]] = {
    "run": ("run", _BUNDLE, "caption en", str(IMAGES), *_QUICK, "--out", _OUT),
    "quantize": ("quantize", _BUNDLE, "cpu-int4", "--no-report", *_ROUNDED, "--overwrite"),
    "prepack": ("prepack", _BUNDLE, "--variant", VARIANT),
    "adapter": ("adapter", _BUNDLE, _ADAPTER, "--name", "new", *_LOSSLESS, "--overwrite"),
    "adapter --remove": ("adapter", _BUNDLE, "--name", "old", "--remove"),
    "export": ("export", str(CHECKPOINT), _NEW, "--overwrite"),
    "export --overwrite": ("export", str(CHECKPOINT), _BUNDLE, "--overwrite"),
}
_ONCE = ("run", "adapter --remove")  # are refused where they were complete: all is there, or gone


@dataclass(frozen=True)
class Undisturbed:
    """A command that nothing disturbed: how long it took, and what was there after it."""

    seconds: float
    files: frozenset[str]
    out: bytes  # of `run`


@dataclass(frozen=True)
class Kills:
    """Attempts by a seed, several at the same time."""

    seed: int
    jobs: int
    undisturbed: dict[str, Undisturbed] = field(default_factory=dict)

    def outcomes(self, numbers: range | list[int]) -> Iterator[Outcome]:
        """Kill a command, in turn of each kind, for each of these numbers."""
        with tempfile.TemporaryDirectory(prefix="damage-") as folder:
            before, work = Path(folder) / "before", Path(folder) / "work"
            before.mkdir()
            work.mkdir()
            _prepare(before)
            answer = _done(_ASK, before)
            for name in {_name(number) for number in numbers}:
                with _copy(before, work) as place:
                    self.undisturbed[name] = _undisturbed(COMMANDS[name], place)

            def attempt(number: int) -> Outcome:
                with _copy(before, work) as place:
                    return self._attempt(number, place, answer)

            yield from in_threads(attempt, numbers, self.jobs)

    def _attempt(self, number: int, place: Path, answer: str) -> Outcome:
        name = _name(number)
        whole = self.undisturbed[name]
        moment = whole.seconds * Random(f"{self.seed} kills {number}").random()
        killed = _killed(COMMANDS[name], place, moment)
        ended = "killed" if killed else "ended before"
        try:
            _check(name, whole, place, answer)
        except (_Lost, PaliGemmaError) as lost:
            return Outcome(number, ended, f"{name}, killed after {moment:.3f} s: {lost}")
        return Outcome(number, ended, None)


class _Lost(Exception):  # noqa: N818 - not an error of the program
    """What a killed command left behind, or what it lost."""


def _name(number: int) -> str:
    return list(COMMANDS)[number % len(COMMANDS)]


def _prepare(folder: Path) -> None:
    """The bundle, with an adapter to be removed, and an adapter to be added."""
    bundle = folder / _BUNDLE
    write_bundle(bundle, write_adapter(folder / _ADAPTER))
    code, _, errors = command("prepack", bundle, "--variant", VARIANT, "--remove")
    assert code == 0, errors


@contextlib.contextmanager
def _copy(before: Path, work: Path) -> Iterator[Path]:
    """A copy of a folder with one for temporary files beside it."""
    with tempfile.TemporaryDirectory(dir=work) as folder:
        shutil.copytree(before, Path(folder) / "place")
        (Path(folder) / "temporary").mkdir()
        yield Path(folder) / "place"


def _started(arguments: Sequence[str], place: Path) -> subprocess.Popen[str]:
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    absolute = os.pathsep.join(str(ROOT / path) for path in paths if path)
    return subprocess.Popen(
        [sys.executable, "-m", "paligemma_edge", *arguments],
        cwd=place,
        env={**os.environ, "PYTHONPATH": absolute, "TMPDIR": str(place.parent / "temporary")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _done(arguments: Sequence[str], place: Path) -> str:
    """The output of a command that has to succeed."""
    with _started(arguments, place) as process:
        try:
            output, errors = process.communicate(timeout=_LIMIT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise _Lost(f"`{' '.join(arguments)}` does not end in {_LIMIT} s") from None
    if process.returncode:
        raise _Lost(f"`{' '.join(arguments)}` ends with {process.returncode}: {errors}")
    return output


def _undisturbed(arguments: Sequence[str], place: Path) -> Undisturbed:
    started = monotonic()
    _done(arguments, place)
    out = place / _OUT
    return Undisturbed(
        monotonic() - started, _files(place), out.read_bytes() if out.exists() else b""
    )


def _killed(arguments: Sequence[str], place: Path, moment: float) -> bool:
    """Kill a command and all that it started after so many seconds; whether it still ran."""
    with _started(arguments, place) as process:
        try:
            process.wait(timeout=moment)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    return process.returncode == -signal.SIGKILL


def _check(name: str, whole: Undisturbed, place: Path, answer: str) -> None:
    """_Lost unless nothing was lost, and the command, repeated, leaves what it would have left."""
    if _done(_ASK, place) != answer:
        raise _Lost("another answer after it")
    out = place / _OUT
    if not (name in _ONCE and _files(place) == whole.files):
        _done(COMMANDS[name], place)
    if (out.read_bytes() if out.exists() else b"") != whole.out:
        raise _Lost(f"{_OUT} is another than that of an undisturbed run")
    if strays := sorted(_files(place) ^ whole.files):
        raise _Lost(f"files too many, or missing: {', '.join(strays)}")
    for path in place.glob("*.bundle"):
        bundle = Bundle.open(path)
        bundle.verify(bundle.manifest.files)


def _files(place: Path) -> frozenset[str]:
    """Names of all files, hidden ones and temporary ones too, but that of ONNX Runtime's own."""
    folders = (place, place.parent / "temporary")
    return frozenset(
        path.relative_to(place.parent).as_posix()
        for folder in folders
        for path in folder.rglob("*")
        if not path.is_dir()
    )
