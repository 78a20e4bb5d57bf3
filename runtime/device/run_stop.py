"""A stop button for runs of graphs, which another thread may press while one runs.

Source: https://onnxruntime.ai/docs/api/python/api_summary.html#onnxruntime.RunOptions.terminate
"""

from __future__ import annotations

from paligemma_edge.runtime.device.ort import ort
from paligemma_edge.runtime.errors import DeviceError


class RunStoppedError(DeviceError):
    """A run was stopped on purpose."""


class RunStop:
    """Stops the runs that it is given to, the one that is under way and all after it."""

    def __init__(self) -> None:
        self.options = ort.RunOptions()

    @property
    def pressed(self) -> bool:
        """Whether it was pressed."""
        return bool(self.options.terminate)

    def press(self) -> None:
        """End the run at its next node; whoever runs the graph gets a RunStoppedError."""
        self.options.terminate = True
