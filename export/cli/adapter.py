"""The command `adapter`: options in, one line out.

The packages of the extra are imported within the command, so that help needs none of them.
"""

from __future__ import annotations

import argparse

from paligemma_edge.export.cli.hub_options import adapter_path, add_hub_options
from paligemma_edge.runtime.cli.progress import shown_progress
from paligemma_edge.runtime.errors import OptionError
from paligemma_edge.runtime.system.console import Console

_EPILOG = """\
examples:
  paligemma-edge adapter mix.bundle parts-lora --name parts
  paligemma-edge adapter mix.bundle cracks-lora --name cracks --variant cpu-int4
  paligemma-edge run mix.bundle "detect crack" photo.jpg --adapter cracks
  paligemma-edge adapter mix.bundle --name cracks --remove
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `adapter`, with its description."""
    parser.usage = (
        "%(prog)s [options] BUNDLE ADAPTER --name NAME\n       %(prog)s BUNDLE --name NAME --remove"
    )
    parser.description = (
        "Add a LoRA adapter, as PEFT saves it, to a bundle, so that each request can use it or\n"
        "not: the variants keep their weights, and take the adapter's as inputs.\n"
        "Anything but a LoRA of linear layers has to be merged: see `export --adapter`."
    )
    parser.epilog = _EPILOG
    parser.add_argument("bundle", metavar="BUNDLE", help="directory of the bundle")
    parser.add_argument(
        "adapter",
        metavar="ADAPTER",
        nargs="?",
        help="directory of the adapter, or its name on the Hub (org/name or org/name@revision); "
        "not with --remove",
    )
    parser.add_argument("--name", required=True, help="the adapter's name in the bundle")
    parser.add_argument(
        "--variant",
        metavar="NAME",
        action="append",
        help="add it to this variant; may be repeated; default: all variants of the bundle",
    )
    add_hub_options(parser)
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace an adapter of this name, in all variants that have it",
    )
    parser.add_argument("--remove", action="store_true", help="remove the adapter of this name")
    parser.set_defaults(command=_adapter)


def _adapter(options: argparse.Namespace) -> int:
    from paligemma_edge.export.lora.add_to_bundle import add_adapter, remove_adapter
    from paligemma_edge.runtime.bundle.bundle import Bundle

    console = Console.standard()
    if options.remove:
        more = (options.variant, options.overwrite, options.from_cache)
        if options.adapter is not None or any(more):
            raise OptionError("--remove takes a bundle and --name, and nothing else")
        remove_adapter(options.bundle, options.name)
        console.summary(f"{options.bundle}: removed adapter {options.name}")
        return 0
    if options.adapter is None:
        raise OptionError("ADAPTER is missing, wanted the directory of a LoRA adapter")
    before = Bundle.open(options.bundle).manifest.adapters.get(options.name)
    directory = adapter_path(options)
    with shown_progress() as progress:
        info = add_adapter(
            options.bundle,
            directory,
            options.name,
            variants=options.variant or (),
            overwrite=options.overwrite,
            progress=progress,
        )
    console.summary(
        f"{options.bundle}: added adapter {options.name} of rank {info.rank} for "
        f"{', '.join(info.files)}; it changes {', '.join(info.graphs)}"
    )
    if before is not None and (lost := [name for name in before.files if name not in info.files]):
        console.summary(
            f"{options.bundle}: {options.name} is no longer there for {', '.join(lost)}"
        )
    return 0
