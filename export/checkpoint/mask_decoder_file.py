"""Where PaliGemma's mask decoder is: its file's name, its place beside the weights, its address.

Opens no file.
"""

from __future__ import annotations

from pathlib import Path

MASK_DECODER_FILE = "vae-oid.npz"
MASK_DECODER_ADDRESS = "https://storage.googleapis.com/big_vision/paligemma/vae-oid.npz"


def find_mask_decoder(directory: Path) -> Path | None:
    """The `vae-oid.npz` that lies beside a checkpoint's weights, if there is one."""
    beside = directory / MASK_DECODER_FILE
    return beside if beside.is_file() else None
