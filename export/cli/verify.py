"""The command `verify`: options in, a table of errors out.

The packages of the extra are imported within the command, so that help needs none of them.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

from paligemma_edge.export.cli.hub_options import adapter_paths, add_hub_options, checkpoint_path
from paligemma_edge.export.verify.samples import DEFAULT_MAX_NEW_TOKENS, read_samples
from paligemma_edge.runtime.cli.progress import shown_progress
from paligemma_edge.runtime.cli.table import rendered
from paligemma_edge.runtime.system.console import Console


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `verify`, with its description."""
    parser.usage = "%(prog)s [options] BUNDLE CHECKPOINT"
    parser.description = (
        "Compare a bundle with its checkpoint in transformers (float32, eager attention),\n"
        "stage by stage. Writes the errors into the bundle; exits with 1 if one is too large."
    )
    parser.epilog = (
        "examples:\n"
        "  paligemma-edge verify mix.bundle paligemma-3b-mix-224\n"
        "  paligemma-edge verify parts.bundle paligemma-3b-pt-224 --adapter parts-lora"
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="directory of the bundle")
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="directory of the checkpoint it was exported from, or its name on the Hub (org/name "
        "or org/name@revision)",
    )
    parser.add_argument(
        "--adapter",
        metavar="DIR",
        action="append",
        help="a LoRA adapter that the bundle was exported with, which peft merges into the "
        "original; may be repeated, in the order of the export",
    )
    add_hub_options(parser)
    parser.add_argument(
        "--variant",
        metavar="NAME",
        help="the variant to compare; default: the lossless one",
    )
    parser.add_argument(
        "--samples",
        metavar="DIR",
        type=Path,
        help="directory of images with a prompts.json; default: three generated images",
    )
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        default=DEFAULT_MAX_NEW_TOKENS,
        metavar="N",
        help="tokens to compare of each answer; default: %(default)s",
    )
    parser.set_defaults(command=_verify)


def _verify(options: argparse.Namespace) -> int:
    from paligemma_edge.export.cli.parity_table import parity_table

    Path.cwd()  # where it is gone, the import of torch would end the process
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch and transformers about this machine
        from paligemma_edge.export.verify.verify import verify

    samples = None if options.samples is None else read_samples(options.samples)
    adapters, checkpoint = adapter_paths(options), checkpoint_path(options)
    with shown_progress() as progress:
        report = verify(
            options.bundle,
            checkpoint,
            variant=options.variant,
            samples=samples,
            max_new_tokens=options.max_new_tokens,
            adapters=adapters,
            progress=progress,
        )
    console = Console.standard()
    with console.optional():  # the result is the exit code
        console.exact(rendered(parity_table(report)))
    return 0 if report.passed else 1
