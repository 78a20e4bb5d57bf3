"""A file that is stored in parts, read as if it were whole.

Knows paths and sizes. Knows nothing of the content. No file stays open between reads.
"""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from paligemma_edge.export.checkpoint.content import require_content


@dataclass(frozen=True)
class JoinedFile:
    """Files whose bytes follow one another; usually just one."""

    paths: tuple[Path, ...]
    starts: tuple[int, ...]  # of each file, then the size of all

    @classmethod
    def open(cls, paths: Sequence[Path]) -> JoinedFile:
        """Note the sizes as they are now.

        Raises OSError where a file cannot be read, CheckpointError where it has no content.
        """
        for path in paths:
            require_content(path)
        sizes = [path.stat().st_size for path in paths]
        return cls(tuple(paths), tuple(itertools.accumulate(sizes, initial=0)))

    @property
    def size(self) -> int:
        """Bytes of all parts."""
        return self.starts[-1]

    def read_into(self, offset: int, view: memoryview) -> int:
        """Fill `view` (format B) from `offset`; return the number of bytes read.

        Raises OSError where a part cannot be read.
        """
        done = 0
        for path, start, length in self._pieces(offset, len(view)):
            with path.open("rb", buffering=0) as file:
                file.seek(start)
                end = done + length
                while done < end and (count := file.readinto(view[done:end])):
                    done += count
            if done < end:  # a part has been cut since it was opened
                break
        return done

    def reader(self) -> io.BufferedReader:
        """A file object over all of it, for libraries that want one."""
        return io.BufferedReader(_Reader(self))

    def _pieces(self, offset: int, length: int) -> Iterator[tuple[Path, int, int]]:
        for path, start, stop in zip(self.paths, self.starts, self.starts[1:], strict=False):
            first, last = max(offset, start), min(offset + length, stop)
            if first < last:
                yield path, first - start, last - first

    def __str__(self) -> str:
        return os.fspath(self.paths[0])


class _Reader(io.RawIOBase):
    def __init__(self, source: JoinedFile) -> None:
        self._source, self._position = source, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._source.size}[whence]
        if base + offset < 0:
            raise OSError("a position before the start of the file")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        count = self._source.read_into(self._position, memoryview(buffer).cast("B"))
        self._position += count
        return count
