"""From a checkpoint to a bundle. Needs the extra `export`; PyTorch only to verify."""

from paligemma_edge.export.exporter import export

__all__ = ["export"]
