"""Where a bundle comes from: the files it was made from, as its manifest lists them."""

from __future__ import annotations

from paligemma_edge.export.checkpoint.config import CONFIG_FILE
from paligemma_edge.export.hub.cache import google_model, label
from paligemma_edge.export.lora.adapter import PeftAdapter
from paligemma_edge.export.source import ExportSource
from paligemma_edge.runtime.bundle.bundle import sha256

SLIDING_WINDOW = "sliding_window"  # in the manifest's `source`, for a PaliGemma 2
ADAPTERS = "adapters"  # in the manifest's `source`: the merged ones, in order
GEMMA_TERMS = "https://ai.google.dev/gemma/terms"


def describe_origin(source: ExportSource) -> dict[str, str]:
    """Names, sizes and digests, without paths. Files of gigabytes get no digest here."""
    checkpoint, masks = source.checkpoint, source.mask_decoder
    origin = {
        "checkpoint": label(source.path),
        "weights": ", ".join(f"{f.name} ({f.stat().st_size} bytes)" for f in checkpoint.files),
    }
    if checkpoint.directory is not None:
        origin["config_sha256"] = sha256(checkpoint.directory / CONFIG_FILE)
    if masks is not None:
        origin["mask_decoder"] = f"{masks.name} (sha256 {sha256(masks)})"
    if source.adapters:
        origin[ADAPTERS] = ", ".join(map(_describe, source.adapters))
    if checkpoint.config.text.gemma2 is not None:
        origin[SLIDING_WINDOW] = source.sliding_window
    if (terms := terms_of(source)) is not None:
        origin["terms"] = terms
    return origin


def terms_of(source: ExportSource) -> str | None:
    """The address of the model's terms, where no file holds them and the model is known."""
    known = google_model(source.path) and not source.licenses.contents
    return GEMMA_TERMS if known else None


def _describe(adapter: PeftAdapter) -> str:
    size, digest = adapter.file.stat().st_size, sha256(adapter.file)
    return f"{label(adapter.directory)} ({size} bytes, sha256 {digest})"
