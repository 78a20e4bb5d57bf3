"""The command `check`: digests and the golden answer, on this device."""

from __future__ import annotations

import argparse

from paligemma_edge.runtime.bundle.bundle import Bundle
from paligemma_edge.runtime.cli.device_options import add_device_options, load_options
from paligemma_edge.runtime.cli.prepack import describe_prepacked

_EPILOG = "example:\n  paligemma-edge check mix.bundle --device cpu"


def add_check(parser: argparse.ArgumentParser) -> None:
    """Describe the command to a parser."""
    parser.description = "Check every digest and answer the bundle's golden question."
    parser.epilog = _EPILOG
    parser.add_argument("bundle", metavar="BUNDLE")
    add_device_options(parser)
    parser.set_defaults(command=_check)


def _check(options: argparse.Namespace) -> int:
    """Check digests and the golden answer; 1 where they differ."""
    from paligemma_edge.runtime.diagnostics.self_test import self_test

    result = self_test(options.bundle, options.device, options.variant, **load_options(options))
    print(result.summary())
    for line in describe_prepacked(Bundle.open(options.bundle)):
        print(f"prepacked: {line}")
    return 0 if result.passed else 1
