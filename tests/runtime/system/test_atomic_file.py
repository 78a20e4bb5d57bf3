from __future__ import annotations

import errno
from pathlib import Path

import pytest

from paligemma_edge.runtime.errors import OutputError
from paligemma_edge.runtime.system import disk
from paligemma_edge.runtime.system.atomic_file import check_file_target, drafted


def test_a_file_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "x.png"
    target.write_bytes(b"old")
    with drafted(target, "--draw") as file:
        file.write(b"new")
        file.flush()
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_whatever_stops_it_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "x.png"
    target.write_bytes(b"old")
    with pytest.raises(error), drafted(target, "--draw") as file:
        file.write(b"new")
        raise error
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "x.png"
    target.write_bytes(b"old")

    def full(self: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    refused = pytest.raises(OutputError, match="free some space")
    with refused as caught, drafted(target, "--draw") as file:
        file.write(b"new")
    assert caught.value.errno == errno.ENOSPC
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def test_the_new_name_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[Path, bytes]] = []
    target = tmp_path / "x.png"
    monkeypatch.setattr(disk, "sync", lambda path: synced.append((path, target.read_bytes())))
    with drafted(target, "--draw") as file:
        file.write(b"new")
    assert synced == [(tmp_path, b"new")]


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").write_bytes(b"mine")
    target = tmp_path / "x.png"
    target.symlink_to(tmp_path / "mine")
    with drafted(target, "--draw") as file:
        file.write(b"new")
    assert (tmp_path / "mine").read_bytes() == b"mine"
    assert (target.read_bytes(), target.is_symlink()) == (b"new", False)


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    check_file_target(tmp_path / "x.png", "--draw")
    with pytest.raises(OutputError, match="Is a directory; give another name to --draw"):
        check_file_target(tmp_path, "--draw")
    with pytest.raises(OutputError, match="there is no folder"):
        check_file_target(tmp_path / "no" / "x.png", "--draw")
    assert list(tmp_path.iterdir()) == []
