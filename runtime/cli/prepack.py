"""What `prime` does: say which graph is worked on, and what came of it."""

from __future__ import annotations

import argparse
import sys


def prime(options: argparse.Namespace) -> int:
    """Prime a variant for this device, or remove what was primed."""
    from paligemma_edge.runtime.diagnostics.prepack import prime as prime_variant
    from paligemma_edge.runtime.diagnostics.prepack import unprime

    if options.remove:
        removed = unprime(options.bundle, options.variant)
        print(f"removed what was primed: {', '.join(removed) or 'nothing was'}")
        return 0
    name = prime_variant(options.bundle, options.variant, progress=_tell)
    print(f"primed {name} for this device; elsewhere the bundle works as before")
    return 0


def _tell(graph: str) -> None:
    print(f"priming {graph}", file=sys.stderr, flush=True)
