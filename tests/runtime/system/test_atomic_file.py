from __future__ import annotations

import errno
import os
import socket
import stat
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO

import pytest

from paligemma_edge.runtime.errors import OutputError
from paligemma_edge.runtime.system import disk
from paligemma_edge.runtime.system.atomic_file import (
    check_target,
    descriptor_of,
    drafted,
    is_stream,
    written,
)


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
    check_target(tmp_path / "x.png", "--draw", overwrite=False)
    with pytest.raises(OutputError, match="Is a directory; give another name to --draw"):
        check_target(tmp_path, "--draw", overwrite=True)
    with pytest.raises(OutputError, match="there is no folder"):
        check_target(tmp_path / "no" / "x.png", "--draw", overwrite=True)
    assert list(tmp_path.iterdir()) == []


def write(target: Path, data: bytes = b"new") -> None:
    with written(target, "--out") as file:
        file.write(data)


def test_what_a_link_leads_to_is_written_and_the_link_stays(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    file, link = tmp_path / "disk" / "x.png", tmp_path / "link.png"
    (tmp_path / "folder").symlink_to("disk")
    link.symlink_to("folder/x.png")
    for before in (None, b"old"):  # also where there is no file yet, as a shell's > does
        if before is not None:
            file.write_bytes(before)
        write(link)
        assert (file.read_bytes(), link.is_symlink()) == (b"new", True)
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["x.png"]


def test_a_pipe_is_written_to_and_stays(tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for target in (pipe, link):
        assert is_stream(target)
        check_target(target, "--out", overwrite=False)  # nothing is replaced
        read: list[bytes] = []
        reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))  # noqa: B023
        reader.start()
        write(target)
        reader.join()
        assert read == [b"new"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "pipe"]


def test_what_is_open_is_written_to(tmp_path: Path) -> None:
    file, link = tmp_path / "x", tmp_path / "link"
    with file.open("wb") as opened:
        opened.write(b"before ")
        opened.flush()
        name = Path(f"/dev/fd/{opened.fileno()}")
        link.symlink_to(name)
        for target in (name, link, Path(f"/proc/self/fd/{opened.fileno()}")):
            assert descriptor_of(target) == opened.fileno()
            check_target(target, "--out", overwrite=False)
            write(target, b"new ")
    assert file.read_bytes() == b"before new new new "
    assert descriptor_of(Path("/dev/stdout")) == 1
    assert descriptor_of(tmp_path / "x") is None
    with file.open("rb") as opened, pytest.raises(OutputError, match="it is closed"):
        check_target(Path(f"/dev/fd/{opened.fileno()}"), "--out", overwrite=True)
    with pytest.raises(OutputError, match="it is closed"):
        check_target(Path("/dev/fd/999999"), "--out", overwrite=True)


def test_a_sink_swallows_and_a_full_device_says_so() -> None:
    write(Path("/dev/null"))
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    with pytest.raises(OutputError, match="/dev/full: No space left on device; free some"):
        write(Path("/dev/full"))


def test_a_terminal_is_written_to() -> None:
    controller, terminal = os.openpty()
    try:
        write(Path(os.ttyname(terminal)))
        assert os.read(controller, 9) == b"new"
    finally:
        os.close(controller)
        os.close(terminal)


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize("output", [written, drafted])
def test_neither_a_socket_nor_a_device_is_replaced(
    tmp_path: Path,
    output: Callable[[Path, str], AbstractContextManager[IO[bytes]]],
    linked: bool,
) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        for there, kind in ((tmp_path / "socket", "a socket"), (Path("/dev/zero"), "a device")):
            target = tmp_path / "link" if linked else there
            if linked:
                target.symlink_to(there)
            with pytest.raises(OutputError, match=f"is {kind}, wanted a file, .*kept"):
                check_target(target, "--out", overwrite=True)
            if linked or os.access(there.parent, os.W_OK):
                with pytest.raises(OutputError, match=f"is {kind}"), output(target, "--out") as f:
                    f.write(b"new")
            assert not stat.S_ISREG(there.stat().st_mode)
            if linked:
                assert target.is_symlink()
                target.unlink()


def test_links_in_a_circle_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OutputError, match="Too many levels of symbolic links"):
        check_target(tmp_path / "a", "--out", overwrite=True)


def test_a_reader_that_has_gone_is_told(tmp_path: Path) -> None:
    read, end = os.pipe()
    os.close(read)
    try:
        with pytest.raises(OutputError, match=f"cannot write /dev/fd/{end}: Broken pipe"):
            write(Path(f"/dev/fd/{end}"))
    finally:
        os.close(end)
