"""An open graph and how it is run.

Knows ONNX Runtime's sessions and bindings. Knows nothing of what a graph computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from paligemma_edge.runtime.contract import LORA
from paligemma_edge.runtime.device.memory import DeviceMemory
from paligemma_edge.runtime.device.ort import ort
from paligemma_edge.runtime.device.ort_errors import wrap_ort_errors
from paligemma_edge.runtime.device.run_stop import RunStop, RunStoppedError
from paligemma_edge.runtime.errors import DeviceError

_NO_GRAPH = -1  # ONNX Runtime then neither records nor replays


@dataclass(frozen=True)
class Session:
    """An open graph on a device.

    With `cuda_graph`, a run under a graph id is recorded once as a CUDA graph and then replayed:
    shapes and addresses of all that is bound must stay as they are.
    """

    inference: ort.InferenceSession
    memory: DeviceMemory
    cuda_graph: bool = False

    @cached_property
    def lora_inputs(self) -> Mapping[str, tuple[int | None, ...]]:
        """Shapes of the graph's inputs for an adapter, by name; a rank is None."""
        return {
            arg.name: tuple(size if isinstance(size, int) else None for size in arg.shape)
            for arg in self.inference.get_inputs()
            if LORA in arg.name
        }

    @cached_property
    def outputs(self) -> frozenset[str]:
        """Names of the graph's outputs."""
        return frozenset(output.name for output in self.inference.get_outputs())

    def binding(self) -> ort.IOBinding:
        """A new, empty binding."""
        return self.inference.io_binding()

    def run(
        self, binding: ort.IOBinding, graph_id: int | None = None, stop: RunStop | None = None
    ) -> None:
        """Run with a binding and wait for the device; DeviceError where that fails.

        RunStoppedError where `stop` was pressed.
        """
        options = ort.RunOptions() if stop is None else stop.options
        if self.cuda_graph:
            used = _NO_GRAPH if graph_id is None else graph_id
            options.add_run_config_entry("gpu_graph_id", str(used))
        try:
            with wrap_ort_errors("ONNX Runtime failed while it ran a graph", self.memory.device):
                self.inference.run_with_iobinding(binding, options)
        except DeviceError:
            if stop is None or not stop.pressed:
                raise
            raise RunStoppedError("the run of a graph was stopped") from None

    def finish(
        self, binding: ort.IOBinding, *outputs: str, stop: RunStop | None = None
    ) -> list[ort.OrtValue]:
        """Bind outputs to new memory on the device, run, and return all outputs."""
        for name in outputs:
            binding.bind_output(name, self.memory.device, self.memory.index)
        self.run(binding, stop=stop)
        values: list[ort.OrtValue] = binding.get_outputs()
        return values
