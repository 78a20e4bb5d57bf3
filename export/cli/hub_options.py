"""The options of commands that take names on the Hub where they take paths.

Knows which option is what. How a name becomes a folder is `hub`'s.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from paligemma_edge.export.hub import download as hub


def add_hub_options(parser: argparse.ArgumentParser, of: str) -> None:
    """`--revision`, of the argument that is called `of`, and `--from-cache`."""
    parser.add_argument(
        "--revision",
        metavar="REV",
        help=f"of {of} on the Hub: a branch, a tag or a commit; default: {hub.DEFAULT_REVISION}",
    )
    parser.add_argument(
        "--from-cache",
        action="store_true",
        help="take what was fetched from the Hub before, and ask no network",
    )


def checkpoint_path(options: argparse.Namespace) -> Path:
    """Where the checkpoint lies."""
    return hub.local_path(
        options.checkpoint,
        hub.CHECKPOINT,
        revision=options.revision,
        from_cache=options.from_cache,
    )


def adapter_path(options: argparse.Namespace) -> Path:
    """Where the one adapter lies that a command is about."""
    return hub.local_path(
        options.adapter, hub.ADAPTER, revision=options.revision, from_cache=options.from_cache
    )


def adapter_paths(options: argparse.Namespace) -> list[Path]:
    """Where the adapters lie that a checkpoint is merged with, in their order."""
    return [
        hub.local_path(adapter, hub.ADAPTER, from_cache=options.from_cache)
        for adapter in options.adapter or ()
    ]


def tokenizer_path(options: argparse.Namespace) -> Path | None:
    """Where the tokenizer lies that replaces the checkpoint's."""
    if options.tokenizer is None:
        return None
    return hub.local_path(options.tokenizer, hub.TOKENIZER, from_cache=options.from_cache)
