"""Compares the digests of a bundle's files in the background, while others of its files are used.

Knows which files ONNX Runtime can reach through a graph: those that the graph names, since links
are refused. Nothing is given to it before all of them are as the manifest says.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from paligemma_edge.runtime.bundle import Bundle

_LARGE = 64 << 20  # bytes of a graph beyond which it is not searched for names


@dataclass(frozen=True)
class Digests:
    """Files of a bundle whose digests are being compared."""

    bundle: Bundle
    found: Mapping[str, Future[str]]

    def file(self, name: str) -> Path:
        """Where a file lies, once its digest was compared; BundleError where it differs."""
        self.check([name])
        return self.bundle.file(name)

    def graph(self, name: str) -> Path:
        """Where a graph lies, once it and every file that it can read were compared."""
        path = self.file(name)
        self.check(self._within_reach(name, path))
        return path

    def check(self, names: Iterable[str]) -> None:
        """Wait for some of the files; a file that was changed is a BundleError."""
        self.bundle.compare({name: self.found[name].result() for name in names})

    def _within_reach(self, graph: str, path: Path) -> list[str]:
        """The files beside a graph whose names are somewhere in it: it can name no others."""
        folder = PurePosixPath(graph).parent
        beside = [name for name in self.found if folder in PurePosixPath(name).parents]
        if path.stat().st_size > _LARGE:
            return beside
        text = path.read_bytes().lower()  # some filesystems see no difference in case
        return [n for n in beside if PurePosixPath(n).name.lower().encode() in text]


@contextlib.contextmanager
def comparing(bundle: Bundle, names: Iterable[str]) -> Iterator[Digests]:
    """Begin to compare the digests of these files; at the end all of them are compared.

    BundleError says which file is missing or was changed. The largest files come first: what
    needs them is open last.
    """
    sizes = {name: bundle.file(name).stat().st_size for name in names}
    ordered = sorted(sizes, key=lambda name: -sizes[name])
    pool = ThreadPoolExecutor(thread_name_prefix="digests")
    try:
        digests = Digests(bundle, {n: pool.submit(bundle.digest, n) for n in ordered})
        yield digests
        digests.check(ordered)
    finally:
        pool.shutdown(cancel_futures=True)
