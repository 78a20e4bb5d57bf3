"""The answers of a run so far, on the disk, so that a run that was killed can continue.

The journal of FILE is FILE.partial: JSON Lines, the first identifies the run, each other line is
one record and ends with its checksum, which depends on the first line: a record that was damaged,
or is another run's, is known by it. Knows records by their image and prompt. Knows nothing of their
other fields.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import json
import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Self, TypeAlias
from zlib import crc32

from paligemma_edge.runtime.errors import OptionError, OutputError
from paligemma_edge.runtime.printable import short_line
from paligemma_edge.runtime.system import disk
from paligemma_edge.runtime.system.atomic_file import check_folder, unwritable

Record: TypeAlias = Mapping[str, Any]
Key: TypeAlias = tuple[str, str]  # name of the image, prompt

_RUN = "paligemma_edge_run"
_SYNCED = 5.0  # seconds of work that a power cut may cost
_SHOWN = 60  # characters of a value in a message
_OPTION = "--out"
_LONGEST = 64 << 20  # bytes of a line; no answer has as many
_SUM = re.compile(rb'(\{.*),"sum":"([0-9a-f]{8})"\}\n')

Note: TypeAlias = Callable[[str], None]


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
        self._seed = 0  # of the checksums: that of the first line

    @classmethod
    def open(
        cls,
        target: Path,
        identity: Record,
        *,
        note: Note = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> Self:
        """Go on with the journal of `target`, or begin one.

        A damaged one is mended, and kept beside it as it was; `note` is told. OptionError, naming
        what differs, where the journal is that of another run; OutputError where another process
        writes it, where it is not a journal, or where the disk refuses.
        """
        path = journal_of(target)
        try:
            check_folder(target)
        except OSError as error:
            raise unwritable(target, error, _OPTION) from None
        journal = cls(target, _open_locked(path), clock)
        try:
            journal._begin(identity, note)
        except BaseException as error:
            journal._abandon()
            if isinstance(error, OSError) and not isinstance(error, OutputError):
                raise unwritable(path, error, _OPTION) from None
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
        line = _with_sum(_line(record), self._seed)
        self._write(line)
        self._keep(record, self._end, len(line))
        self._end += len(line)
        if self._clock() - self._synced >= _SYNCED:
            self._sync()
            self._synced = self._clock()

    def records(self, order: Iterable[Key]) -> Iterator[Record]:
        """The records of those of these keys that have one, each once, read one by one."""
        for key in dict.fromkeys(key for key in order if key in self._places):
            if (record := _read_record(self._line_at(*self._places[key]), self._seed)) is None:
                raise self._unreadable(errno.EIO)
            yield record

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

    def _begin(self, identity: Record, note: Note) -> None:
        if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
            raise self._not_a_journal()
        header = _line({_RUN: identity})
        with os.fdopen(os.dup(self._descriptor), "rb") as file:
            file.seek(0)
            first = file.readline(_LONGEST)
            if header.startswith(first) and first != header:  # new, or cut short as it began
                os.ftruncate(self._descriptor, 0)
                self._write(header)
                self._end, self._seed = len(header), crc32(header)
                return
            known = self._check(first, identity)
            damaged = self._read(file, first, first if known else header) + (not known)
            if not known and not self._places and not _is_remnant(first):
                raise self._not_a_journal()
        if damaged:
            self._mend(first if known else header, damaged, note)
        else:
            os.ftruncate(self._descriptor, self._end)

    def _read(self, file: IO[bytes], first: bytes, header: bytes) -> int:
        """Index the records of all whole lines; how many lines are damaged."""
        self._seed, self._end, damaged = crc32(header), len(first), 0
        for line in iter(lambda: file.readline(_LONGEST), b""):
            if not line.endswith(b"\n") and len(line) < _LONGEST:
                break  # the last line, which was cut short
            if (record := _read_record(line, self._seed)) is not None:
                self._keep(record, self._end, len(line))
            else:
                damaged += 1
            self._end += len(line)
        return damaged

    def _mend(self, header: bytes, damaged: int, note: Note) -> None:
        """Put a journal of all good lines in the place of this one, which gets another name."""
        aside = _aside(self.path)
        mended = type(self)(self.target, _open_locked(aside), self._clock)
        try:
            for line in itertools.chain([header], self._lines()):
                mended._write(line)
                mended._end += len(line)
            mended._sync()
            disk.exchange(aside, self.path)
        except BaseException:
            os.close(mended._descriptor)
            aside.unlink()
            raise
        os.close(self._descriptor)
        self._descriptor = mended._descriptor
        with os.fdopen(os.dup(self._descriptor), "rb") as file:
            file.seek(len(header))
            self._read(file, header, header)
        note(
            f"{self.path} was damaged in {damaged:,} of its lines; what was lost is answered "
            f"again, and the damaged file is kept as {aside.name}"
        )

    def _lines(self) -> Iterator[bytes]:
        """The good lines, as they are."""
        return (self._line_at(*place) for place in self._places.values())

    def _line_at(self, offset: int, length: int) -> bytes:
        try:
            return os.pread(self._descriptor, length, offset)
        except OSError as error:
            raise self._unreadable(error.errno or errno.EIO) from None

    def _abandon(self) -> None:
        """Close a journal that could not be begun; a file without anything in it is removed."""
        with contextlib.suppress(OSError):
            there = os.fstat(self._descriptor)
            if stat.S_ISREG(there.st_mode) and not there.st_size:
                self.path.unlink()
        os.close(self._descriptor)

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

    def _sync(self) -> None:
        try:
            os.fdatasync(self._descriptor)
        except OSError as error:
            raise unwritable(self.path, error, _OPTION) from None

    def _check(self, first: bytes, identity: Record) -> bool:
        """Whether the first line can be read; OptionError where it is that of another run."""
        recorded = _read_identity(first)
        if recorded is None:
            return False
        names = recorded | dict(identity)
        if differing := [name for name in names if recorded.get(name) != identity.get(name)]:
            was = ", ".join(f"{name} {_short(recorded.get(name))}" for name in differing)
            now = ", ".join(f"{name} {_short(identity.get(name))}" for name in differing)
            raise OptionError(
                f"{self.path} holds answers of another run, with {was}, now {now}; give another "
                f"FILE to {_OPTION}, or delete {self.path}"
            )
        return True

    def _unreadable(self, number: int) -> OutputError:
        return OutputError(
            number, f"cannot read {self.path}: {os.strerror(number)}; run the same command again"
        )

    def _not_a_journal(self) -> OutputError:
        return OutputError(
            errno.EEXIST,
            f"{self.path} exists and is not the journal of a run; give another FILE to {_OPTION}",
        )


def journal_of(target: Path) -> Path:
    """Path of the journal of an output file."""
    return target.with_name(f"{target.name}.partial")


def _aside(path: Path) -> Path:
    """A new name for a damaged journal."""
    names = (path.with_name(f"{path.name}.damaged{n or ''}") for n in itertools.count())
    return next(name for name in names if not os.path.lexists(name))


def _short(value: object) -> str:
    """A value of an identity, for a message of one line."""
    return short_line(json.dumps(value), _SHOWN)


def _read_identity(line: bytes) -> dict[str, Any] | None:
    """What the first line says; None where it is damaged, or no journal's."""
    try:
        recorded = json.loads(line.decode("ascii"))[_RUN]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return recorded if isinstance(recorded, dict) and line.endswith(b"\n") else None


def _is_remnant(line: bytes) -> bool:
    """Whether a damaged first line can be a journal's: power cuts leave zeros in files."""
    return _RUN.encode() in line or not line.strip(b"\0\n")


def _read_record(line: bytes, seed: int) -> Record | None:
    """The record of a line; None where it is not as it was written."""
    match = _SUM.fullmatch(line)
    if match is None or crc32(match[1] + b"}", seed) != int(match[2], 16):
        return None
    record: Record = json.loads(match[1] + b"}")
    return record


def _with_sum(line: bytes, seed: int) -> bytes:
    """A line of JSON with its checksum."""
    body = line.rstrip(b"\n")
    return b'%s,"sum":"%08x"}\n' % (body[:-1], crc32(body, seed))


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
