"""Memory, CPU and cores of this process and its machine, read from Linux.

Knows /proc and cgroups. Knows nothing of a model, and leaves out what a system does not report.
"""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

MemoryPart = Literal["resident", "anonymous", "file_backed", "peak"]

_PARTS: Mapping[str, MemoryPart] = {
    "VmRSS": "resident",
    "RssAnon": "anonymous",
    "RssFile": "file_backed",
    "VmHWM": "peak",
}
_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")


def process_memory(proc: Path = _PROC) -> dict[MemoryPart, int]:
    """Bytes of physical memory that this process holds now, and the most it ever held.

    Anonymous memory is the process's own; file-backed memory can be dropped and read again.
    """
    status = _fields(proc / "self/status")
    return {part: _bytes(status[name]) for name, part in _PARTS.items() if name in status}


def available_memory(proc: Path = _PROC) -> int | None:
    """Bytes that a new process could take without swapping; None where that is not reported."""
    meminfo = _fields(proc / "meminfo")
    return _bytes(meminfo["MemAvailable"]) if "MemAvailable" in meminfo else None


def machine_memory(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> int | None:
    """Bytes that this process may hold: physical memory, within the limits of its cgroups.

    None where neither is reported.
    """
    meminfo = _fields(proc / "meminfo")
    sizes = [_bytes(meminfo["MemTotal"])] if "MemTotal" in meminfo else []
    sizes += [size for file in _memory_limits(proc, cgroups) if (size := _number(file)) is not None]
    return min(sizes, default=None)


def _memory_limits(proc: Path, cgroups: Path) -> Iterator[Path]:
    """Files with the limits of this process's cgroups and those above them, of both versions.

    In a container the path may be the host's, and the limit lies at the top.
    """
    for line in _lines(proc / "self/cgroup"):
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        parts = [part for part in path.split("/") if part not in ("", "..")]
        if number == "0" and not controllers:
            top, file = cgroups, "memory.max"
        elif "memory" in controllers.split(","):
            top, file = cgroups / "memory", "memory.limit_in_bytes"
        else:
            continue
        for depth in range(len(parts) + 1):
            yield top.joinpath(*parts[:depth], file)


def _number(path: Path) -> int | None:
    """The number in a file; None for "max" and where there is no such file."""
    lines = _lines(path)
    return int(lines[0]) if lines and lines[0].strip().isdecimal() else None


def processor_name(proc: Path = _PROC) -> str:
    """The CPU's model name, or its architecture: ARM reports no name."""
    return _fields(proc / "cpuinfo").get("model name") or platform.machine() or "unknown"


def instruction_sets(proc: Path = _PROC) -> list[str]:
    """Instruction set extensions of the CPU, sorted; empty where they are not reported."""
    cpuinfo = _fields(proc / "cpuinfo")
    return sorted(set((cpuinfo.get("flags") or cpuinfo.get("Features") or "").split()))


def usable_cores() -> int:
    """Cores that this process may use: its affinity, within the quota of its cgroup."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, math.ceil(min(cores or 1, _quota(_CGROUPS / "cpu.max"))))


def _quota(path: Path) -> float:
    try:
        limit, period = path.read_text().split()
    except (OSError, ValueError):
        return math.inf
    return math.inf if limit == "max" else int(limit) / int(period)


def _fields(path: Path) -> dict[str, str]:
    """`name: value` lines, the last of each name; empty where there is no such file."""
    pairs = (line.partition(":") for line in _lines(path))
    return {name.strip(): value.strip() for name, colon, value in pairs if colon}


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []


def _bytes(value: str) -> int:
    number, _, unit = value.partition(" ")
    assert unit == "kB", "the one unit that /proc writes"
    return int(number) * 1024
