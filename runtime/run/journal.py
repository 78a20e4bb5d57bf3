"""The answers of a run so far, on the disk, so that a run that was killed can continue.

The journal of FILE is FILE.partial: JSON Lines, the first identifies the run, each other line is
one record. Knows records by their image and prompt. Knows nothing of their other fields.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self, TypeAlias

from paligemma_edge.runtime.errors import OptionError, OutputError
from paligemma_edge.runtime.system.atomic_file import check_file_target, unwritable

Record: TypeAlias = Mapping[str, Any]
Key: TypeAlias = tuple[str, str]  # name of the image, prompt

_RUN = "paligemma_edge_run"
_SYNCED = 5.0  # seconds of work that a power cut may cost
_SHOWN = 60  # characters of a value in a message
_OPTION = "--out"


class Journal:
    """The journal of one output file, locked: no other run can open it meanwhile."""

    def __init__(self, target: Path, descriptor: int, clock: Callable[[], float]) -> None:
        """For `open`; the descriptor is that of FILE.partial."""
        self.target, self.path = target, journal_of(target)
        self._descriptor, self._clock, self._synced = descriptor, clock, clock()
        self._places: dict[Key, tuple[int, int]] = {}  # offset and length of each record
        self._failed: set[Key] = set()  # whose record has an error in place of an answer
        self._prompts: dict[str, str] = {}  # one string for all its records
        self._end = 0  # after the last whole line

    @classmethod
    def open(
        cls, target: Path, identity: Record, *, clock: Callable[[], float] = time.monotonic
    ) -> Self:
        """Go on with the journal of `target`, or begin one.

        OptionError, naming what differs, where the journal is that of another run; OutputError
        where another process writes it, where it is not a journal, or where the disk refuses.
        """
        check_file_target(target, _OPTION)
        journal = cls(target, _open_locked(journal_of(target)), clock)
        try:
            journal._begin(identity)
        except BaseException:
            os.close(journal._descriptor)
            raise
        return journal

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: object) -> bool:
        """Whether it was answered; what failed is to be answered again."""
        return key in self._places and key not in self._failed

    @property
    def failures(self) -> int:
        """How many records say why there is no answer."""
        return len(self._failed)

    @property
    def answers(self) -> int:
        """How many records hold an answer."""
        return len(self._places) - len(self._failed)

    @property
    def keys(self) -> tuple[Key, ...]:
        """Those of all records, in the order in which they were first answered."""
        return tuple(self._places)

    def keep_only(self, keys: Iterable[Key]) -> None:
        """Forget the records of other keys, such as those of images that have vanished since."""
        kept = set(keys)
        self._places = {key: place for key, place in self._places.items() if key in kept}
        self._failed &= kept

    def append(self, record: Record) -> None:
        """Add a record, in one write. OutputError where the disk refuses; the others stay."""
        line = _line(record)
        self._write(line)
        self._keep(record, self._end, len(line))
        self._end += len(line)
        if self._clock() - self._synced >= _SYNCED:
            os.fdatasync(self._descriptor)
            self._synced = self._clock()

    def records(self, order: Iterable[Key]) -> Iterator[Record]:
        """The records of those of these keys that have one, each once, read one by one."""
        for key in dict.fromkeys(key for key in order if key in self._places):
            offset, length = self._places[key]
            yield json.loads(os.pread(self._descriptor, length, offset))

    def close(self) -> None:
        """Unlock the file for other runs; a journal without a record is removed."""
        if self._descriptor < 0:
            return
        if not self._places:
            self.path.unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = -1

    def remove(self) -> None:
        """Close and remove the file, whose answers are in the output now."""
        self._places.clear()
        self.close()

    def _begin(self, identity: Record) -> None:
        with os.fdopen(os.dup(self._descriptor), "rb") as file:
            file.seek(0)
            first = file.readline()
            if first.endswith(b"\n"):
                self._check(first, identity)
                self._end = len(first)
                self._read(file)
            elif first and not _line({_RUN: identity}).startswith(first):
                raise self._not_a_journal()
        os.ftruncate(self._descriptor, self._end)  # a line that was cut short
        if not self._end:
            line = _line({_RUN: identity})
            self._write(line)
            self._end = len(line)

    def _read(self, lines: Iterable[bytes]) -> None:
        """Index the records of all whole lines; the query of a damaged one is answered again."""
        for line in lines:
            if not line.endswith(b"\n"):
                return
            if (record := _read_record(line)) is not None:
                self._keep(record, self._end, len(line))
            self._end += len(line)

    def _keep(self, record: Record, offset: int, length: int) -> None:
        prompt = self._prompts.setdefault(record["prompt"], record["prompt"])
        key = record["image"], prompt
        self._places[key] = offset, length
        if "error" in record:
            self._failed.add(key)
        else:
            self._failed.discard(key)

    def _write(self, line: bytes) -> None:
        """Write after the last whole line; remove a part that is all a full disk had room for."""
        written = 0
        try:
            while written < len(line):
                written += os.pwrite(self._descriptor, line[written:], self._end + written)
        except OSError as error:
            os.ftruncate(self._descriptor, self._end)
            raise unwritable(self.path, error, _OPTION) from None

    def _check(self, line: bytes, identity: Record) -> None:
        try:
            recorded = json.loads(line)[_RUN]
            differing = [name for name in recorded | identity if _differs(recorded, identity, name)]
        except (ValueError, TypeError, KeyError):
            raise self._not_a_journal() from None
        if differing:
            was = ", ".join(f"{name} {_short(recorded.get(name))}" for name in differing)
            now = ", ".join(f"{name} {_short(identity.get(name))}" for name in differing)
            raise OptionError(
                f"{self.path} holds answers of another run, with {was}, now {now}; give another "
                f"FILE to {_OPTION}, or delete {self.path}"
            )

    def _not_a_journal(self) -> OutputError:
        return OutputError(
            errno.EEXIST,
            f"{self.path} exists and is not the journal of a run; give another FILE to {_OPTION}",
        )


def journal_of(target: Path) -> Path:
    """Path of the journal of an output file."""
    return target.with_name(f"{target.name}.partial")


def _differs(one: Record, other: Record, name: str) -> bool:
    return bool(one.get(name) != other.get(name))


def _short(value: object) -> str:
    """A value of an identity, for a message of one line."""
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _read_record(line: bytes) -> Record | None:
    """The record of a line; None where it is damaged."""
    try:
        record = json.loads(line)
        key = record["image"], record["prompt"]
    except (ValueError, TypeError, KeyError):
        return None
    return record if all(isinstance(part, str) for part in key) else None


def _line(record: Record) -> bytes:
    """In ASCII, which can hold any file name."""
    return json.dumps(record, separators=(",", ":")).encode("ascii") + b"\n"


def _open_locked(path: Path) -> int:
    """Open a file, made where it is missing, with its lock, which goes when the process dies."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            raise unwritable(path, error, _OPTION) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A run that ended meanwhile has removed the file that we opened.
            if _is_at(path, descriptor):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise OutputError(
                errno.EBUSY, f"another run is writing {path}; wait for it, or give another FILE"
            ) from None
        except OSError:  # a filesystem without locks: go on without
            return descriptor
        os.close(descriptor)


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
