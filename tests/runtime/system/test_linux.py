"""What Linux reports, and what some systems leave out."""

from __future__ import annotations

import math
import platform
from pathlib import Path

import pytest

from paligemma_edge.runtime.system import linux as host
from paligemma_edge.runtime.system.linux import available_memory, process_memory, processor_name

STATUS = """\
Name:\tpython
VmHWM:\t  300 kB
VmRSS:\t  200 kB
RssAnon:\t  150 kB
RssFile:\t   50 kB
"""


def test_memory_is_read_in_bytes(tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "self/status").write_text(STATUS)
    (tmp_path / "meminfo").write_text("MemTotal: 16 kB\nMemAvailable:    8 kB\n")
    assert process_memory(tmp_path) == {
        "resident": 200 << 10,
        "anonymous": 150 << 10,
        "file_backed": 50 << 10,
        "peak": 300 << 10,
    }
    assert available_memory(tmp_path) == 8 << 10


def test_what_the_system_does_not_list_is_left_out(tmp_path: Path) -> None:
    assert process_memory(tmp_path) == {}
    assert available_memory(tmp_path) is None
    assert processor_name(tmp_path) == platform.machine()


def test_the_processor_has_its_makers_name(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Fast One: 3 GHz\n")
    assert processor_name(tmp_path) == "Fast One: 3 GHz"


def test_this_process_takes_memory() -> None:
    held = bytearray(64 << 20)
    held[::4096] = b"x" * len(held[::4096])
    assert process_memory()["anonymous"] > 64 << 20
    assert (available_memory() or 0) > 0


@pytest.mark.parametrize(
    ("text", "cores"), [("max 100000\n", math.inf), ("150000 100000\n", 1.5), ("", math.inf)]
)
def test_the_quota_of_a_container_counts(tmp_path: Path, text: str, cores: float) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert host._quota(tmp_path / "cpu.max") == cores
    assert host._quota(tmp_path / "absent") == math.inf
