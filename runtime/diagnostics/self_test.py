"""Does a bundle work on this device? Digests of all files, then the golden question."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Unpack

from paligemma_edge.runtime.bundle.local import open_bundle
from paligemma_edge.runtime.diagnostics.golden_check import GoldenCheck, check_golden
from paligemma_edge.runtime.loading.loaded_model import load_model
from paligemma_edge.runtime.loading.options import LoadOptions
from paligemma_edge.runtime.loading.variants import DeviceName
from paligemma_edge.runtime.progress import Progress, no_progress
from paligemma_edge.runtime.size_text import size_text


@dataclass(frozen=True, kw_only=True)
class SelfTest:
    """A bundle whose digests are right, and what it makes of the golden question."""

    files: int  # whose digests are right
    file_bytes: int  # of all of them
    question: GoldenCheck

    @property
    def passed(self) -> bool:
        """Whether nothing that can be compared differs."""
        return self.question.passed

    def summary(self) -> list[str]:
        """The result in a few lines, for people."""
        digests = f"the digests of {self.files} files ({size_text(self.file_bytes)}) match"
        verdict = "passed" if self.passed else "FAILED"
        return [
            f"{verdict}: {digests}; {self.question.summary()}",
            *(f"  {line}" for line in self.question.differences()),
        ]


def self_test(
    bundle_path: str | os.PathLike[str],
    device: DeviceName = "auto",
    variant: str | None = None,
    *,
    progress: Progress = no_progress,
    **load: Unpack[LoadOptions],
) -> SelfTest:
    """Check the digest of every file of a bundle, and ask the golden question where there is one.

    BundleError where a file is damaged or the golden question unreadable; DeviceError where the
    device is not there.
    """
    bundle = open_bundle(bundle_path)
    progress("comparing digests and opening the variant", 0, 1)
    model = load_model(bundle.path, device, variant, **load)
    files = bundle.manifest.files
    bundle.verify(set(files) - set(model.verified_files))
    return SelfTest(
        files=len(files),
        file_bytes=sum(record.bytes for record in files.values()),
        question=check_golden(model, progress),
    )
