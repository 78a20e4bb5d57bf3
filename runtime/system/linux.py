"""What Linux tells of this process and of the machine that it runs on.

Knows /proc. Knows nothing of a model, and leaves out what a system does not tell.
"""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Mapping
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


def process_memory(proc: Path = _PROC) -> dict[MemoryPart, int]:
    """Bytes of physical memory that this process holds now, and the most it ever held.

    Anonymous memory is the process's own; what is file-backed can be dropped and read again.
    """
    told = _fields(proc / "self/status")
    return {part: _bytes(told[name]) for name, part in _PARTS.items() if name in told}


def available_memory(proc: Path = _PROC) -> int | None:
    """Bytes that a new process could take without swapping; None where it is not told."""
    told = _fields(proc / "meminfo")
    return _bytes(told["MemAvailable"]) if "MemAvailable" in told else None


def processor_name(proc: Path = _PROC) -> str:
    """The processor as its maker calls it, or its architecture: ARM has no names there."""
    return _fields(proc / "cpuinfo").get("model name") or platform.machine() or "unknown"


def instruction_sets(proc: Path = _PROC) -> list[str]:
    """What the processor offers beyond its architecture, sorted; empty where it is not told."""
    told = _fields(proc / "cpuinfo")
    return sorted(set((told.get("flags") or told.get("Features") or "").split()))


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


def _fields(path: Path) -> dict[str, str]:
    """`name: value` lines, the last of each name; none where there is no such file."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in lines)
    return {name.strip(): value.strip() for name, colon, value in pairs if colon}


def _bytes(value: str) -> int:
    number, _, unit = value.partition(" ")
    assert unit == "kB", "the one unit that /proc writes"
    return int(number) * 1024
