"""Compares the digests of a bundle's files in the background, while graphs are being opened.

A graph is parsed when it is opened, so its digest is compared before. Weights are only read, at
offsets and sizes that the graph names and that are known to fit the files: their digests are
compared while the graph is opened, and all of them before anything is computed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from paligemma_edge.runtime.bundle.bundle import Bundle
from paligemma_edge.runtime.system.linux import usable_cores


@dataclass(frozen=True)
class Digests:
    """Files of a bundle whose digests are being compared."""

    bundle: Bundle
    futures: Mapping[str, tuple[Future[str], ...]]  # of each file: one for each piece

    def file(self, name: str) -> Path:
        """The path of a file, once its digest was compared; BundleError where it differs."""
        self.check([name])
        return self.bundle.file(name)

    def check(self, names: Iterable[str]) -> None:
        """Wait for some of the files; BundleError where one was changed."""
        self.bundle.refuse([name for name in names if not self._is_right(name)])

    def _is_right(self, name: str) -> bool:
        record = self.bundle.manifest.files[name]
        digests = tuple(future.result() for future in self.futures[name])
        return digests == (record.pieces or (record.sha256,))


@contextlib.contextmanager
def comparing(bundle: Bundle, names: Iterable[str]) -> Iterator[Digests]:
    """Start to compare the digests of files; when the block ends, all of them are compared.

    BundleError names a file that is missing or was changed. The smallest files come first, since
    opening a graph waits for its digest.
    """
    sizes = {name: bundle.file(name).stat().st_size for name in names}
    ordered = sorted(sizes, key=lambda name: sizes[name])
    pool = ThreadPoolExecutor(usable_cores(), thread_name_prefix="digests")
    try:
        digests = Digests(bundle, {n: tuple(_submit(pool, bundle, n)) for n in ordered})
        yield digests
        digests.check(ordered)
    finally:
        pool.shutdown(cancel_futures=True)


def _submit(pool: ThreadPoolExecutor, bundle: Bundle, name: str) -> Iterator[Future[str]]:
    pieces = len(bundle.manifest.files[name].pieces)
    for piece in range(pieces) if pieces else (None,):
        yield pool.submit(bundle.digest, name, piece)
