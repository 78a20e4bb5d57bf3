"""What `prepack` does: say which graph is worked on, and what came of it."""

from __future__ import annotations

import argparse
import sys


def prepack(options: argparse.Namespace) -> int:
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
