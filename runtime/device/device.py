"""Where graphs run: a requested device is used, or it is an error.

Knows providers, threads and session options. Knows no graph.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from paligemma_edge.runtime.device.cuda import check as cuda
from paligemma_edge.runtime.device.cuda.errors import explain
from paligemma_edge.runtime.device.linked_weights import linked_weights
from paligemma_edge.runtime.device.memory import DeviceKind, DeviceMemory
from paligemma_edge.runtime.device.ort import one_line, ort
from paligemma_edge.runtime.errors import DeviceError
from paligemma_edge.runtime.system.linux import usable_cores
from paligemma_edge.runtime.validation import check_count

_Provider: TypeAlias = tuple[str, dict[str, str]]

_PROVIDERS: Mapping[DeviceKind, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
}
# GroupQueryAttention takes `causal=0` from this version on.
_OLDEST_ONNXRUNTIME = (1, 30)
_MAX_THREADS = 1024
_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
_NAMED = 3  # nodes that an error names


@dataclass(frozen=True, kw_only=True)
class Device:
    """A device that is present.

    `threads` are those of the CPU. `memory_limit` is in bytes, that ONNX Runtime may take on a
    GPU in addition to weights and caches; `cuda_graph` is whether steps are recorded as CUDA
    graphs there.
    """

    name: DeviceKind
    threads: int
    index: int = 0
    memory_limit: int | None = None
    cuda_graph: bool = False
    gpu: cuda.Gpu | None = None  # its state before anything was opened
    missing_libraries: tuple[str, ...] = ()  # of CUDA, that could not be loaded

    @property
    def memory(self) -> DeviceMemory:
        """Where its tensors are stored."""
        return DeviceMemory(self.name, self.index)

    def open_session(
        self,
        path: Path,
        *,
        optimized: bool = False,
        cuda_graph: bool = False,
        weights: Path | None = None,
    ) -> ort.InferenceSession:
        """Open a graph with all of its nodes on this device; `optimized` is one as it saves it.

        `weights` is the folder of the weights files, where that is not the graph's own. DeviceError
        where the graph cannot be opened; it names nodes that would run elsewhere.
        """
        options = self._options()
        if optimized:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        if weights is not None:
            options.add_session_config_entry(_WEIGHTS_FOLDER, os.fspath(weights))
        remedy = "; run `paligemma-edge prepack` again, or with --remove" if optimized else ""
        return self._open(path, options, remedy, cuda_graph=cuda_graph, weights=weights)

    def save_session(self, path: Path, target: Path) -> None:
        """Save a graph as this device optimizes it, with packed weights, in two files.

        They are `target` and a file beside it that has the same name with `.data` at the end.
        """
        options = self._options()
        options.optimized_model_filepath = os.fspath(target)
        for key, value in (
            ("session.optimized_model_external_initializers_file_name", f"{target.name}.data"),
            ("session.optimized_model_external_initializers_min_size_in_bytes", "1024"),
            ("session.save_external_prepacked_constant_initializers", "1"),
        ):
            options.add_session_config_entry(key, value)
        self._open(path, options)

    def _options(self) -> ort.SessionOptions:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.log_severity_level = 4  # its errors reach us as exceptions
        if self.name == "cuda":
            for key, value in _CUDA_SESSION.items():
                options.add_session_config_entry(key, value)
        else:
            # An arena keeps the memory of the largest prefill, and each session has its own.
            # Without one, a run of a 3B model took 0.1 GB less and was not slower.
            options.enable_cpu_mem_arena = False
        return options

    def _provider(self, cuda_graph: bool) -> _Provider:
        if self.name == "cpu":
            return _PROVIDERS["cpu"], {}
        options = {"device_id": str(self.index), "enable_cuda_graph": str(int(cuda_graph))}
        if self.memory_limit is not None:
            options["gpu_mem_limit"] = str(self.memory_limit)
        return _PROVIDERS["cuda"], {**_CUDA_PROVIDER, **options}

    def _open(
        self,
        path: Path,
        options: ort.SessionOptions,
        remedy: str = "",
        *,
        cuda_graph: bool = False,
        weights: Path | None = None,
    ) -> ort.InferenceSession:
        """Open a graph from its file, or from bytes where weights are in another folder."""
        provider = self._provider(cuda_graph)
        graph = os.fspath(path) if weights is None else path.read_bytes()
        try:
            with linked_weights(options, path, weights):
                # Its fallback would print to standard output and hide the reason.
                session = ort.InferenceSession(
                    graph, options, providers=[provider], enable_fallback=0
                )
        except Exception as error:  # ONNX Runtime raises a different class for each code
            reason = (explain(error) if self.name == "cuda" else None) or one_line(error)
            raise DeviceError(
                f"ONNX Runtime {ort.__version__} cannot open {path} on {self.name}: "
                f"{reason}{remedy}"
            ) from None
        if provider[0] not in session.get_providers():
            advice = cuda.session_advice(self.missing_libraries)
            raise DeviceError(
                f"{path} was to run on {self.name}, but ONNX Runtime {ort.__version__} fell back "
                f"to {', '.join(session.get_providers())}; {advice}"
            )
        if self.name == "cuda":
            require_placed(path, session, provider[0])
        return session


_CUDA_SESSION: Mapping[str, str] = {
    "session.record_ep_graph_assignment_info": "1",  # for `require_placed`
    # Weights are kept outside the arena, which grows by more than is requested.
    "session.use_device_allocator_for_initializers": "1",
    # The fast kernels for weights of 4 and 8 bits in blocks of 32.
    "ep.cuda.fpa_intb_gemm": "1",
}
_CUDA_PROVIDER: Mapping[str, str] = {
    "arena_extend_strategy": "kSameAsRequested",
    "cudnn_conv_algo_search": "HEURISTIC",  # trying all would delay the first image
    "use_tf32": "0",  # what a recipe keeps in float32 is computed in float32
}


def require_placed(path: Path, session: ort.InferenceSession, provider: str) -> None:
    """DeviceError that names nodes which would run on another provider than this one.

    The session has to be opened with `session.record_ep_graph_assignment_info`.
    """
    elsewhere = [
        f"{node.op_type} {node.name}".strip()
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name != provider
        for node in part.get_nodes()
    ]
    if elsewhere:
        named = ", ".join(elsewhere[:_NAMED])
        raise DeviceError(
            f"{path} has {len(elsewhere)} nodes that {provider} cannot run, such as {named}; "
            "quantize the bundle again with a recipe for this device"
        )


def open_device(
    name: DeviceKind,
    threads: int | None = None,
    *,
    index: int = 0,
    memory_limit: int | None = None,
    cuda_graph: bool = False,
) -> Device:
    """Check that a device is there and that this ONNX Runtime is recent enough.

    On CUDA the driver and its GPU are looked up too, and CUDA's libraries loaded. DeviceError says
    what is missing and what to do; a library of CUDA other than cuDNN is missed only where a
    session opens without CUDA.
    """
    if threads is not None:
        threads = check_count("threads", threads, _MAX_THREADS)
    version = tuple(int(part) for part in ort.__version__.split(".")[:2])
    if version < _OLDEST_ONNXRUNTIME:
        raise DeviceError(
            f"ONNX Runtime is {ort.__version__}, wanted 1.30 or newer; "
            f"run: pip install 'paligemma-edge[{name}]'"
        )
    check_present(name)
    gpu: cuda.Gpu | None = None
    missing: tuple[str, ...] = ()
    if name == "cuda":
        ort.set_default_logger_severity(4)  # as of a session's own log
        gpu = cuda.find_gpu(index)
        missing = cuda.load_libraries()
        cuda.require_cudnn()
    return Device(
        name=name,
        threads=threads or usable_cores(),
        index=index,
        memory_limit=memory_limit,
        cuda_graph=cuda_graph,
        gpu=gpu,
        missing_libraries=missing,
    )


def describe_runtime() -> str:
    """Version and build of ONNX Runtime."""
    build = ort.get_build_info().removeprefix("ORT Build Info: ")
    return f"ONNX Runtime {ort.__version__} ({build})"


def check_present(name: DeviceKind) -> None:
    """DeviceError where this ONNX Runtime was not built for a device."""
    available = ort.get_available_providers()
    if _PROVIDERS[name] not in available:
        raise DeviceError(
            f"device {name} was requested, this ONNX Runtime has only {', '.join(available)}; "
            f"{cuda.package_advice()}"
        )


def present_devices() -> tuple[DeviceKind, ...]:
    """The devices that are present, the faster one first."""
    available = ort.get_available_providers()
    with_gpu = _PROVIDERS["cuda"] in available and cuda.gpu_is_present()
    return ("cuda", "cpu") if with_gpu else ("cpu",)
