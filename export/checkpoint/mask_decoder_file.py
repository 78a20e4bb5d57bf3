"""Where PaliGemma's mask decoder is: its file's name, its place beside the weights, its address.

Reads none of its content.
"""

from __future__ import annotations

from pathlib import Path

from paligemma_edge.export.checkpoint.content import has_file

MASK_DECODER_FILE = "vae-oid.npz"
MASK_DECODER_ADDRESS = "https://storage.googleapis.com/big_vision/paligemma/vae-oid.npz"


def find_mask_decoder(directory: Path) -> Path | None:
    """The `vae-oid.npz` that lies beside a checkpoint's weights, if there is one."""
    beside = directory / MASK_DECODER_FILE
    return beside if has_file(beside) else None
