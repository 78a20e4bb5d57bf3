"""How much memory a process may hold, read from files as Linux writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from paligemma_edge.runtime.system.linux import machine_memory

NONE = "9223372036854771712"  # how version 1 writes that there is no limit


@pytest.mark.parametrize(
    ("groups", "limits", "wanted"),
    [
        ("0::/", {}, 8_000),
        ("0::/", {"memory.max": "max"}, 8_000),
        ("0::/", {"memory.max": "3000000"}, 3_000_000),
        ("0::/a/b", {"a/memory.max": "2000000", "a/b/memory.max": "max"}, 2_000_000),
        ("0::/a/b", {"a/memory.max": "max", "a/b/memory.max": "1000000"}, 1_000_000),
        ("0::/../../host", {"memory.max": "3000000"}, 3_000_000),
        ("0::/", {"memory.max": "99000000000000"}, 8_000),
        ("4:cpu,memory:/docker/x", {"memory/memory.limit_in_bytes": "2500000"}, 2_500_000),
        ("4:memory:/x", {"memory/x/memory.limit_in_bytes": "1500000"}, 1_500_000),
        ("4:memory:/x", {"memory/memory.limit_in_bytes": NONE}, 8_000),
        ("3:cpu:/x", {"memory.max": "1"}, 8_000),
        ("0::/", {"memory.max": "many"}, 8_000),
        ("nonsense", {}, 8_000),
    ],
)
def test_a_limit_of_the_group_counts(
    tmp_path: Path, groups: str, limits: dict[str, str], wanted: int
) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal:       8000 kB\nMemFree: 1 kB\n")
    (tmp_path / "proc/self/cgroup").write_text(f"{groups}\n")
    for name, text in limits.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    size = machine_memory(tmp_path / "proc", tmp_path / "cgroup")
    assert size == (wanted * 1024 if wanted == 8_000 else wanted)


def test_what_is_not_reported_is_not_guessed(tmp_path: Path) -> None:
    assert machine_memory(tmp_path, tmp_path) is None


def test_this_machine_has_some() -> None:
    size = machine_memory()
    assert size is None or size > 100_000_000
