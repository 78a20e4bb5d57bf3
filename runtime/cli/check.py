"""The command `check`: digests and the golden question, on this device."""

from __future__ import annotations

import argparse

from paligemma_edge.runtime.bundle.local import open_bundle
from paligemma_edge.runtime.cli.device_options import (
    add_bundle,
    add_device_options,
    add_max_batch_size,
    add_max_length,
    load_options,
)
from paligemma_edge.runtime.cli.prepack import describe_prepacked
from paligemma_edge.runtime.cli.progress import shown_progress
from paligemma_edge.runtime.system.console import Console

_EPILOG = """\
`export` writes the question, `verify` its answer, where the checkpoint is. Without an answer, the
digests and how image and prompt are read decide.

examples:
  paligemma-edge check mix.bundle
  paligemma-edge check mix.bundle --device cpu --variant cpu-int8
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Describe the command to a parser."""
    parser.usage = "%(prog)s [options] BUNDLE"
    parser.description = (
        "Test a bundle on this device: compare every file with its digest, and how the golden\n"
        "question is read and answered with the original."
    )
    parser.epilog = _EPILOG
    add_bundle(parser)
    group = add_device_options(parser)
    add_max_batch_size(group, "answers at a time that memory is allocated for")
    add_max_length(group)
    parser.set_defaults(command=_check)


def _check(options: argparse.Namespace) -> int:
    """Check digests and the golden question; 1 where they differ."""
    from paligemma_edge.runtime.diagnostics.self_test import self_test

    with shown_progress() as progress:
        result = self_test(
            options.bundle,
            options.device,
            options.variant,
            progress=progress,
            **load_options(options),
        )
    prepacked = describe_prepacked(open_bundle(options.bundle))
    lines = [*result.summary(), *(f"prepacked: {line}" for line in prepacked)]
    Console.standard().summary(*lines)  # the result is the exit code
    return 0 if result.passed else 1
