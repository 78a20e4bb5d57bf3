"""Exports a PaliGemma checkpoint to a bundle. Needs the extra `export`, without PyTorch.

Only the room `verify` imports PyTorch and transformers, which the extra `verify` brings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paligemma_edge.export.exporter import export

__all__ = ["export"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a module attribute may be anything
    """Import `export` on first use: the commands' help needs none of its packages."""
    if name != "export":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from paligemma_edge.export.exporter import export

    return export
