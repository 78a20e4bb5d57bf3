"""Compares the digests of a bundle's files in the background, while graphs are being opened.

A graph is parsed, and so is compared before it is opened. Its weights are numbers whose places and
sizes the graph names, and the sizes of files are known to be right: they are compared while the
graph is opened, and all of them before anything is computed.
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
    found: Mapping[str, tuple[Future[str], ...]]  # one for each piece

    def file(self, name: str) -> Path:
        """Where a file lies, once its digest was compared; BundleError where it differs."""
        self.check([name])
        return self.bundle.file(name)

    def check(self, names: Iterable[str]) -> None:
        """Wait for some of the files; a file that was changed is a BundleError."""
        self.bundle.refuse([name for name in names if not self._is_right(name)])

    def _is_right(self, name: str) -> bool:
        record = self.bundle.manifest.files[name]
        found = tuple(future.result() for future in self.found[name])
        return found == (record.pieces or (record.sha256,))


@contextlib.contextmanager
def comparing(bundle: Bundle, names: Iterable[str]) -> Iterator[Digests]:
    """Begin to compare the digests of these files; at the end all of them are compared.

    BundleError says which file is missing or was changed. The smallest files come first: graphs
    wait for theirs.
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
