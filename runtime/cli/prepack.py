"""The command `prepack`: save a variant as ONNX Runtime packs it for this CPU, or remove that."""

from __future__ import annotations

import argparse

from paligemma_edge.runtime.bundle.bundle import Bundle
from paligemma_edge.runtime.cli.progress import shown_progress
from paligemma_edge.runtime.cli.verbosity import is_verbose
from paligemma_edge.runtime.errors import MissingExtraError
from paligemma_edge.runtime.system.console import Console

_EPILOG = """\
examples:
  paligemma-edge prepack mix.bundle --variant cpu-fp32
  paligemma-edge prepack mix.bundle --remove
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Describe the command to a parser."""
    parser.usage = "%(prog)s [options] BUNDLE"
    parser.description = (
        "Save a variant as ONNX Runtime packs it for this processor, so that nearly all of its\n"
        "memory is a file that processes share and that the system can take back. On other\n"
        "devices the bundle works as before."
    )
    parser.epilog = _EPILOG
    parser.add_argument("bundle", metavar="BUNDLE", help="folder that `export` wrote")
    parser.add_argument(
        "--variant", metavar="NAME", help="variant to pack; default: the one that is used here"
    )
    parser.add_argument(
        "--remove",
        action="store_true",
        help="remove what was packed, of --variant or of every variant",
    )
    parser.set_defaults(command=_prepack)


def _prepack(options: argparse.Namespace) -> int:
    """Prepack a variant for this device, or remove what was prepacked."""
    from paligemma_edge.runtime.diagnostics.prepack import prepack as prepack_variant
    from paligemma_edge.runtime.diagnostics.prepack import remove_prepacked

    console = Console.standard()
    if options.remove:
        removed = remove_prepacked(options.bundle, options.variant)
        console.summary(f"removed what was prepacked: {', '.join(removed) or 'nothing was'}")
        return 0
    with shown_progress() as progress:
        name = prepack_variant(options.bundle, options.variant, progress=progress)
    console.summary(f"prepacked {name} for this device; elsewhere the bundle works as before")
    return 0


def describe_prepacked(bundle: Bundle) -> list[str]:
    """Which variants were prepacked, and where; without ONNX Runtime none of them is of use."""
    if not bundle.manifest.prepacked:
        return []
    try:
        from paligemma_edge.runtime.loading import prepacked

        return prepacked.describe(bundle, whole=is_verbose())
    except MissingExtraError:
        return [f"{name}, not used: no ONNX Runtime is here" for name in bundle.manifest.prepacked]
