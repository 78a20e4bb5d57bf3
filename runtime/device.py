"""Where a variant runs: a device that was asked for is honoured or it is an error.

Knows providers, threads and session options. Knows no graph.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Literal

from paligemma_edge.runtime.contract import Manifest, Variant
from paligemma_edge.runtime.errors import (
    BundleError,
    DeviceError,
    MissingExtraError,
    OptionError,
)

try:
    import onnxruntime as ort
except ModuleNotFoundError as missing:
    if missing.name != "onnxruntime":
        raise
    raise MissingExtraError(
        "the package onnxruntime is not installed, and nothing runs without it; "
        "run: pip install 'paligemma-edge[cpu]', or [cuda] for an NVIDIA device"
    ) from None

DeviceName = Literal["auto", "cpu", "cuda"]
_PROVIDERS: Mapping[Literal["cpu", "cuda"], str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
}
# GroupQueryAttention takes `causal=0` from this version on.
_OLDEST_ONNXRUNTIME = (1, 30)
_MAX_THREADS = 1024


@dataclass(frozen=True)
class Device:
    """A device that is present, and how many threads the processor's part may use."""

    name: Literal["cpu", "cuda"]
    threads: int

    def open_session(self, path: Path, *, optimized: bool = False) -> ort.InferenceSession:
        """Open a graph with all of its nodes on this device; `optimized` is one as it saves it."""
        options = self._options()
        if optimized:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        remedy = "; run `paligemma-edge prime` again, or with --remove" if optimized else ""
        return self._open(path, options, remedy)

    def save_session(self, path: Path, target: Path) -> None:
        """Save a graph as this device optimizes it, packed weights included, in two files.

        They are `target` and, beside it, what is named like it with `.data` at the end.
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
        options.log_severity_level = 4  # its errors come to us as exceptions, and we tell them
        if self.name == "cuda":
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        else:
            # An arena keeps the largest prefill's memory for good, and each session has its own.
            # Without it a run of 3B took 0.1 GB less and no longer.
            options.enable_cpu_mem_arena = False
        return options

    def _open(
        self, path: Path, options: ort.SessionOptions, remedy: str = ""
    ) -> ort.InferenceSession:
        provider = _PROVIDERS[self.name]
        try:
            session = ort.InferenceSession(os.fspath(path), options, providers=[provider])
        except Exception as error:  # ONNX Runtime raises a class of its own for each code
            raise DeviceError(
                f"ONNX Runtime {ort.__version__} cannot open {path} on {self.name}: "
                f"{one_line(error)}{remedy}"
            ) from None
        if provider not in session.get_providers():
            raise DeviceError(
                f"{path} was to run on {self.name}, but ONNX Runtime fell back to "
                f"{', '.join(session.get_providers())}; check the driver "
                "and the CUDA libraries, or ask for device cpu"
            )
        return session


def choose(
    manifest: Manifest, device: DeviceName = "auto", variant: str | None = None
) -> tuple[str, Variant]:
    """The variant that was named, or the first one that is made for the device."""
    _check_name(device)
    if variant is not None:
        return variant, _named(manifest, device, variant)
    if device != "auto":
        _check_present(device)
    wanted = _present() if device == "auto" else (device,)
    for name in wanted:
        for key, candidate in manifest.variants.items():
            if candidate.device == name:
                return key, candidate
    made = ", ".join(f"{key} for {found.device}" for key, found in manifest.variants.items())
    raise BundleError(
        f"the bundle has no variant for {' or '.join(wanted)}, only {made or 'none at all'}; "
        "choose a device that it was made for"
    )


def open_device(name: Literal["cpu", "cuda"], threads: int | None = None) -> Device:
    """Check that a device is there and that this ONNX Runtime is recent enough."""
    if threads is not None:
        threads = check_count("threads", threads, _MAX_THREADS)
    version = tuple(int(part) for part in ort.__version__.split(".")[:2])
    if version < _OLDEST_ONNXRUNTIME:
        raise DeviceError(
            f"ONNX Runtime is {ort.__version__}, wanted 1.30 or newer; "
            "run: pip install -U 'paligemma-edge[cpu]'"
        )
    _check_present(name)
    ort.disable_telemetry_events()
    if name == "cuda":
        ort.preload_dlls()
    return Device(name, threads or usable_cores())


def describe_runtime() -> str:
    """Version and build of ONNX Runtime."""
    build = ort.get_build_info().removeprefix("ORT Build Info: ")
    return f"ONNX Runtime {ort.__version__} ({build})"


def check_count(name: str, value: object, most: int | None = None) -> int:
    """A whole number from 1 to `most`; OptionError, which names the option, for all else."""
    whole = int(value) if isinstance(value, Integral) and not isinstance(value, bool) else 0
    if not 1 <= whole <= (most or math.inf):
        wanted = "of at least 1" if most is None else f"from 1 to {most}"
        raise OptionError(f"{name} is {value!r}, wanted a whole number {wanted}")
    return whole


def _check_present(name: Literal["cpu", "cuda"]) -> None:
    available = ort.get_available_providers()
    if _PROVIDERS[name] not in available:
        raise DeviceError(
            f"device {name} was asked for, this ONNX Runtime has only {', '.join(available)}; "
            "run: pip uninstall onnxruntime && pip install 'paligemma-edge[cuda]'"
        )


def _check_name(device: str) -> None:
    if device not in ("auto", *_PROVIDERS):
        raise OptionError(f"device is {device!r}, wanted one of auto, {', '.join(_PROVIDERS)}")


def usable_cores() -> int:
    """Cores that this process may use: its affinity, within the quota of its control group."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, math.ceil(min(cores or 1, _quota(Path("/sys/fs/cgroup/cpu.max")))))


def _quota(path: Path) -> float:
    try:
        limit, period = path.read_text().split()
    except (OSError, ValueError):
        return math.inf
    return math.inf if limit == "max" else int(limit) / int(period)


def _present() -> tuple[str, ...]:
    """The devices that this ONNX Runtime was built for, the faster one first.

    It has no sure way to tell that a card is there but to open a graph, and then it says so.
    """
    available = ort.get_available_providers()
    return tuple(name for name in ("cuda", "cpu") if _PROVIDERS[name] in available)


def _named(manifest: Manifest, device: str, variant: str) -> Variant:
    found = manifest.variants.get(variant) if isinstance(variant, str) else None
    if found is None:
        raise OptionError(f"variant is {variant!r}, the bundle has {', '.join(manifest.variants)}")
    if device not in ("auto", found.device):
        raise OptionError(
            f"variant {variant} is made for {found.device}, device {device} was asked for; "
            "leave one of the two out"
        )
    return found


def one_line(error: BaseException) -> str:
    """A library's message without its line breaks, for the end of one of ours."""
    return " ".join(str(error).split())[:300]
