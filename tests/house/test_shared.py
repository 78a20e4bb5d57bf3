"""What workers share is built once, and again where building failed."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.helpers.shared import build_once


def test_several_at_once_build_once(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Threads stand for workers: each opens the lock for itself, as a process does."""
    builds = []

    def build(folder: Path) -> None:
        builds.append(folder)
        time.sleep(0.05)
        (folder / "model").write_text("whole")

    def use(_: int) -> str:
        return (build_once(tmp_path_factory, tmp_path.name, build) / "model").read_text()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(use, range(4))) == ["whole"] * 4
    assert len(builds) == 1


def test_what_failed_is_built_again(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        build_once(tmp_path_factory, tmp_path.name, fail)
    folder = build_once(tmp_path_factory, tmp_path.name, lambda folder: (folder / "whole").touch())
    assert [path.name for path in folder.iterdir()] == ["whole"]
