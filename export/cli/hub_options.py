"""Options of the commands that take a name on the Hub in place of a path."""

from __future__ import annotations

import argparse
from pathlib import Path

from paligemma_edge.export.hub.download import local_path
from paligemma_edge.export.hub.file_sets import ADAPTER, CHECKPOINT, TOKENIZER


def add_hub_options(parser: argparse.ArgumentParser) -> None:
    """`--from-cache`, of all that a name on the Hub is given for."""
    parser.add_argument(
        "--from-cache",
        action="store_true",
        help="use only what was fetched from the Hub before, without a network",
    )


def checkpoint_path(options: argparse.Namespace) -> Path:
    """The folder or npz of the checkpoint."""
    return local_path(options.checkpoint, CHECKPOINT, from_cache=options.from_cache)


def adapter_path(options: argparse.Namespace) -> Path:
    """The folder of the one adapter of a command."""
    return local_path(options.adapter, ADAPTER, from_cache=options.from_cache)


def adapter_paths(options: argparse.Namespace) -> list[Path]:
    """The folders of the adapters that are merged, in their order."""
    return [
        local_path(adapter, ADAPTER, from_cache=options.from_cache)
        for adapter in options.adapter or ()
    ]


def tokenizer_path(options: argparse.Namespace) -> Path | None:
    """The tokenizer that replaces the checkpoint's; None where none is given."""
    if options.tokenizer is None:
        return None
    return local_path(options.tokenizer, TOKENIZER, from_cache=options.from_cache)
