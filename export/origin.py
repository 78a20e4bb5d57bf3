"""Where a bundle comes from: the files it was made from, as its manifest lists them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from paligemma_edge.export.checkpoint.config import CONFIG_FILE
from paligemma_edge.export.checkpoint.open import Checkpoint
from paligemma_edge.export.hub.cache import label
from paligemma_edge.export.lora.adapter import PeftAdapter
from paligemma_edge.runtime.bundle.bundle import sha256

SLIDING_WINDOW = "sliding_window"  # in the manifest's `source`, for a PaliGemma 2
ADAPTERS = "adapters"  # in the manifest's `source`: the merged ones, in order


def describe_origin(
    path: Path, checkpoint: Checkpoint, adapters: Sequence[PeftAdapter]
) -> dict[str, str]:
    """Names, sizes and digests, without paths. Files of gigabytes get no digest here."""
    origin = {
        "checkpoint": label(path),
        "weights": ", ".join(f"{f.name} ({f.stat().st_size} bytes)" for f in checkpoint.files),
    }
    if checkpoint.directory is not None:
        origin["config_sha256"] = sha256(checkpoint.directory / CONFIG_FILE)
    if adapters:
        origin[ADAPTERS] = ", ".join(map(_describe, adapters))
    return origin


def _describe(adapter: PeftAdapter) -> str:
    size, digest = adapter.file.stat().st_size, sha256(adapter.file)
    return f"{label(adapter.directory)} ({size} bytes, sha256 {digest})"
