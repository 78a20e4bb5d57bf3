"""Runs the command `export`, `verify` or `adapter`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from paligemma_edge.export.cli.adapter import add_adapter_options
from paligemma_edge.export.cli.export import add_export_options
from paligemma_edge.export.cli.verify import add_verify_options


def main(argv: Sequence[str]) -> int:
    """Run the command that argv begins with, and return its exit status."""
    parser = argparse.ArgumentParser(prog="paligemma-edge")
    names = parser.add_subparsers(required=True)
    plain = argparse.RawDescriptionHelpFormatter  # keeps the line breaks of the examples
    add_export_options(names.add_parser("export", formatter_class=plain))
    add_verify_options(names.add_parser("verify", formatter_class=plain))
    add_adapter_options(names.add_parser("adapter", formatter_class=plain))
    options = parser.parse_args(argv)
    command: Callable[[argparse.Namespace], int] = options.command
    return command(options)
