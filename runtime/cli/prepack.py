"""The command `prepack`: save a variant as ONNX Runtime packs it for this CPU, or remove that."""

from __future__ import annotations

import argparse
import sys

from paligemma_edge.runtime.bundle.bundle import Bundle
from paligemma_edge.runtime.errors import MissingExtraError

_EPILOG = """\
examples:
  paligemma-edge prepack mix.bundle --variant cpu-fp32
  paligemma-edge prepack mix.bundle --remove
"""


def add_prepack(parser: argparse.ArgumentParser) -> None:
    """Describe the command to a parser."""
    parser.description = (
        "Save a variant as ONNX Runtime packs it for this processor, so that nearly all of its "
        "memory is a file that processes share and the system can take back."
    )
    parser.epilog = _EPILOG
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument("--variant", metavar="NAME", help="such as cpu-fp32; see inspect")
    parser.add_argument("--remove", action="store_true", help="remove what was saved")
    parser.set_defaults(command=_prepack)


def _prepack(options: argparse.Namespace) -> int:
    """Prepack a variant for this device, or remove what was prepacked."""
    from paligemma_edge.runtime.diagnostics.prepack import prepack as prepack_variant
    from paligemma_edge.runtime.diagnostics.prepack import remove_prepacked

    if options.remove:
        removed = remove_prepacked(options.bundle, options.variant)
        print(f"removed what was prepacked: {', '.join(removed) or 'nothing was'}")
        return 0
    name = prepack_variant(options.bundle, options.variant, progress=_tell)
    print(f"prepacked {name} for this device; elsewhere the bundle works as before")
    return 0


def _tell(graph: str) -> None:
    print(f"prepacking {graph}", file=sys.stderr, flush=True)


def describe_prepacked(bundle: Bundle) -> list[str]:
    """Which variants were prepacked, and where; without ONNX Runtime none of them is of use."""
    if not bundle.manifest.prepacked:
        return []
    try:
        from paligemma_edge.runtime.loading import prepacked

        return prepacked.describe(bundle)
    except MissingExtraError:
        return [f"{name}, not used: no ONNX Runtime is here" for name in bundle.manifest.prepacked]
